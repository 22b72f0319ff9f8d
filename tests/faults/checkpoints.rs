//! Checkpoints of a wipe that cannot be written, or meet others' writes.

use std::fs::{File, OpenOptions};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use local_volume_provisioner::scrub::checkpoint::Cadence;
use local_volume_provisioner::scrub::limits::Limits;
use serde_json::Value;
use testkit::api::Fault;
use testkit::mounts::LoopDevice;

use crate::world::{World, always, as_users};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 192 * MIB;
const CHECKPOINT: &str = "local-volume-provisioner/checkpoint";

fn offset(pv: &Value) -> u64 {
    let noted = pv["metadata"]["annotations"][CHECKPOINT].as_str().unwrap_or("{}");
    let noted: Value = serde_json::from_str(noted).unwrap();
    noted["offset"].as_u64().unwrap_or(0)
}

fn byte_at(device: &Path, offset: u64) -> Result<u8> {
    // What a reader has seen before stays in the page cache of a loop device's file.
    let mut bytes = [0];
    File::open(device)?.read_exact_at(&mut bytes, offset)?;
    Ok(bytes[0])
}

/// A device whose wipe takes three seconds and notes its place many times; it has a tenant's data at its start and end.
async fn tenant(world: &World) -> Result<(LoopDevice, Value, String)> {
    world.scrub.set(Limits {
        bytes_per_second: NonZeroU64::new(64 * MIB),
        checkpoints: Cadence {
            period: Duration::from_millis(10),
            bytes: 8 * MIB,
        },
        ..Limits::default()
    });
    let device = LoopDevice::with_file(&world.entry("../backing.img"), SIZE)?;
    symlink(device.path(), world.entry("disk1"))?;
    world.start();
    let pv = world.available("disk1", &Value::Null).await?;
    let claim = world.bind(&pv)?;
    let file = OpenOptions::new().write(true).open(device.path())?;
    for place in [0, SIZE - 512] {
        file.write_all_at(&[0xaa; 512], place)?;
    }
    file.sync_all()?;
    Ok((device, pv, claim))
}

#[test]
fn a_wipe_does_not_wait_for_checkpoints_that_cannot_be_written() {
    as_users("unwritable_checkpoints", &["full"], async |world: Rc<World>| {
        let (device, pv, claim) = tenant(&world).await?;
        world.api.delete_claim("default", &claim)?;
        world
            .until("the first checkpoint", |world| {
                (offset(&world.pv("disk1")?) > 0).then_some(())
            })
            .await?;
        let hang = always(Fault::hang().verb("patch").resource("persistentvolumes"));
        world.api.inject(hang);
        // It goes to its end all the same.
        let data = || byte_at(device.path(), SIZE - 512).unwrap();
        world.until("the wipe's end", |_| (data() == 0).then_some(())).await?;
        ensure!(world.pv("disk1").unwrap()["metadata"]["uid"] == pv["metadata"]["uid"]);
        world.api.clear_faults();
        let again = world.available("disk1", &pv["metadata"]["uid"]).await?;
        ensure!(offset(&again) == 0);
        Ok(())
    });
}

#[test]
fn a_checkpoint_that_met_another_write_is_made_up_for_by_the_next() {
    as_users("conflicting_checkpoints", &["full"], async |world: Rc<World>| {
        let (device, pv, claim) = tenant(&world).await?;
        let name = pv["metadata"]["name"].as_str().unwrap().to_owned();
        world.api.delete_claim("default", &claim)?;
        let mut noted = 0;
        for number in 0..3 {
            // Somebody annotates it at the last moment.
            let name = name.clone();
            let race = Fault::run(move |api| {
                api.edit("persistentvolumes", "", &name, |pv| {
                    pv["metadata"]["annotations"]["example.com/touched"] = number.to_string().into();
                });
            });
            noted = world
                .until("a further checkpoint", |world| {
                    let now = offset(&world.pv("disk1")?);
                    (now > noted).then_some(now)
                })
                .await?;
            world.api.inject(race.verb("patch").resource("persistentvolumes"));
        }
        let touched = world.pv("disk1").unwrap()["metadata"]["annotations"]["example.com/touched"].clone();
        ensure!(touched == "1", "the conflict was none: {touched}");
        world.available("disk1", &pv["metadata"]["uid"]).await?;
        ensure!(byte_at(device.path(), 0)? == 0 && byte_at(device.path(), SIZE - 512)? == 0);
        Ok(())
    });
}

#[test]
fn nothing_is_written_while_an_outdated_checkpoint_cannot_be_removed() {
    as_users("outdated_checkpoints", &["full"], async |world: Rc<World>| {
        let (device, pv, claim) = tenant(&world).await?;
        let name = pv["metadata"]["name"].as_str().unwrap().to_owned();
        world
            .until("the mark", |world| {
                let pv = world.pv("disk1")?;
                let used = &pv["metadata"]["annotations"]["local-volume-provisioner/used"];
                used.is_string().then_some(())
            })
            .await?;
        let refuse = Fault::status(500).verb("patch").resource("persistentvolumes");
        world.api.inject(always(refuse));
        world.api.edit("persistentvolumes", "", &name, |pv| {
            pv["metadata"]["annotations"][CHECKPOINT] = "{}".into();
        });
        world.api.delete_claim("default", &claim)?;
        world.event("is outdated and cannot be removed").await?;
        world.pass_time(Duration::from_secs(60)).await;
        ensure!(
            byte_at(device.path(), 0)? == 0xaa,
            "wiped with an outdated checkpoint on the PV"
        );
        world.api.clear_faults();
        world.available("disk1", &pv["metadata"]["uid"]).await?;
        ensure!(byte_at(device.path(), 0)? == 0 && byte_at(device.path(), SIZE - 512)? == 0);
        Ok(())
    });
}
