//! The binary; see the library.

fn main() -> std::process::ExitCode {
    local_volume_provisioner::cli::main()
}
