//! A scrub that runs goes on, whatever is edited, and is what the PV was published with.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::rc::Rc;
use std::time::Duration;

use anyhow::ensure;
use kube::ResourceExt;
use local_volume_provisioner::names;
use testkit::mounts::LoopDevice;

use crate::node::{DEADLINE, MODES, Node, in_worlds, phase};

const BLOCK: &str = "  volumeMode: Block\n";

#[test]
fn a_volume_is_scrubbed_by_the_cleaner_that_it_was_published_with() {
    in_worlds("another_cleaner", &MODES, async |node: Rc<Node>| {
        let class = node.class("Delete", BLOCK).await?;
        let device = LoopDevice::with_file(&node.path("backing.img"), 16 << 20)?;
        symlink(device.path(), node.entry(&class, "disk1"))?;
        node.start().await?;
        let pv = node.available("disk1").await?;
        node.claim_of_mode("a", &class, "Block").await?;
        let mut file = std::fs::File::options().write(true).open(device.path())?;
        file.seek(SeekFrom::Start(8 << 20))?;
        file.write_all(b"secret")?;
        file.sync_all()?;
        drop(file);
        let quick = format!("{BLOCK}  blockCleanerCommand: [quick]\n");
        node.configure("storageClassMap", &node.settings_of(&class, &quick))?;
        node.several_passes().await;
        node.release("a").await?;
        let again = node.again("disk1", &pv).await?;
        let mut found = [1; 6];
        let mut file = std::fs::File::open(device.path())?;
        file.seek(SeekFrom::Start(8 << 20))?;
        file.read_exact(&mut found)?;
        ensure!(found == [0; 6], "it was scrubbed by the cleaner that came later");
        let cleaner = again.annotations().get(names::CLEANER);
        ensure!(cleaner.is_some_and(|cleaner| cleaner.contains("quick")), "{cleaner:?}");
        Ok(())
    });
}

#[test]
fn a_scrub_that_runs_survives_every_edit() {
    in_worlds("running_scrub", &MODES, async |node: Rc<Node>| {
        let (begun, go) = (node.path("begun"), node.path("go"));
        let script = format!(
            "echo begun >> {}; while [ ! -e {} ]; do sleep 0.05; done",
            begun.display(),
            go.display()
        );
        let slow = format!("{BLOCK}  blockCleanerCommand: [/bin/sh, -c, '{script}']\n");
        let class = node.class("Delete", &slow).await?;
        let other = node.class("Delete", "").await?;
        let device = LoopDevice::with_file(&node.path("backing.img"), 16 << 20)?;
        symlink(device.path(), node.entry(&class, "disk1"))?;
        node.tmpfs(&other, "disk2")?;
        node.start().await?;
        let pv = node.available("disk1").await?;
        let untouched = node.available("disk2").await?;
        node.claim_of_mode("a", &class, "Block").await?;
        node.release("a").await?;
        let times = || std::fs::read_to_string(&begun).unwrap_or_default().lines().count();
        let end = tokio::time::Instant::now() + DEADLINE;
        while times() == 0 {
            ensure!(tokio::time::Instant::now() < end, "the scrub does not begin");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (sound, rest) = (node.settings_of(&class, &slow), node.settings_of(&other, ""));
        let elsewhere = sound.replace(&node.path(&class).display().to_string(), "/nowhere");
        for map in [
            rest.clone(),                                                         // removed
            sound.clone() + &rest,                                                // back
            elsewhere + &rest,                                                    // elsewhere
            node.settings_of(&class, "  blockCleanerCommand: [quick]\n") + &rest, // of files, by another cleaner
            format!("{class}: broken\n{rest}"),
            "- [\n".into(),
            String::new(),
            "{}".into(),
            sound.clone() + &rest,
        ] {
            node.edit([
                ("storageClassMap", Some(map.as_str())),
                ("useJobForCleaning", Some("yes")),
            ])?;
            node.several_passes().await;
            let now = node.published().await?;
            ensure!(now.get("disk1").is_some_and(|now| now.uid() == pv.uid()), "of {map}");
            ensure!(phase(&now["disk1"]) == "Released");
        }
        ensure!(times() == 1, "the scrub was begun {} times", times());
        node.configure("useJobForCleaning", "no")?;
        std::fs::write(&go, "")?;
        node.again("disk1", &pv).await?;
        ensure!(times() == 1, "the scrub was begun {} times", times());
        // `{}` was there for longer than the grace period: that class was meant to go.
        ensure!(node.available("disk2").await?.uid() != untouched.uid());
        Ok(())
    });
}
