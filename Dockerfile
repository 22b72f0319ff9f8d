# docker build -t localhost/local-volume-provisioner:0.1.0 .
# The image is the one that hack/image makes without Docker.
FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN hack/image --rootfs /rootfs

FROM scratch
COPY --from=build /rootfs /
ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin
ENTRYPOINT ["/local-volume-provisioner"]
