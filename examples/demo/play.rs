//! The play: what happens to the disks, and what is seen of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::mounts;

use crate::journal::{Change, DEADLINE, Journal};
use crate::node::{CLASS, DISK_BYTES, Node};
use crate::screen::Screen;

const NAMESPACE: &str = "default";

/// The disks that are there before the provisioner is.
pub(crate) fn before_the_start(node: &Node, screen: &mut Screen) -> Result<()> {
    screen.step("Two disks are mounted, and a class is configured for their directory");
    node.mount_tmpfs("disk-1")?;
    let source = node.mount_directory("disk-2")?;
    screen.line(&format!("disk-1   a tmpfs of {} MiB", DISK_BYTES >> 20));
    screen.line(&format!("disk-2   the directory {}, bind-mounted", source.display()));
    let map: Vec<String> = node.configure()?.lines().map(str::to_owned).collect();
    screen.listing("config", &map);
    Ok(())
}

/// Everything else. Returns what has happened, in a few words.
pub(crate) async fn all(node: &Node, journal: &Journal, screen: &mut Screen) -> Result<String> {
    let mut play = Play { node, journal, screen };
    let (first, second) = play.discovery().await?;
    play.tenant(&first).await?;
    play.release(&first).await?;
    play.hotplug().await?;
    play.nested_mount(&second).await?;
    Ok("3 disks published, 2 scrubbed after use, 1 held and let go".into())
}

struct Play<'a> {
    node: &'a Node,
    journal: &'a Journal,
    screen: &'a mut Screen,
}

impl Play<'_> {
    /// The PVs of the first two disks.
    async fn discovery(&mut self) -> Result<(Change, Change)> {
        self.screen.step("The provisioner starts and publishes them");
        let start = Instant::now();
        let first = self.available("disk-1", 0).await?;
        let second = self.available("disk-2", 0).await?;
        for pv in [&first, &second] {
            self.show(pv, start);
        }
        Ok((first, second))
    }

    /// A claim is bound, and a pod writes.
    async fn tenant(&mut self, pv: &Change) -> Result<()> {
        self.screen.step("A tenant claims one of them and writes to it");
        self.claim("orders", pv).await?;
        // Where a link of the tenant leads to: none of the volume's business.
        let outside = self.node.root.join("outside");
        write(&outside, "not the tenant's")?;
        let pod = self.node.mount_for_pod(pv.name(), pv.entry())?;
        write(&pod.join(".token"), "hidden")?;
        write(&pod.join("db/orders.dat"), "4111 1111 1111 1111")?;
        symlink(&outside, pod.join("link")).context("make a link as a tenant")?;
        mounts::unmount(&pod)?;
        self.screen.listing(pv.entry(), &listing(&self.node.disk(pv.entry()))?);
        Ok(())
    }

    /// The claim is deleted: released, scrubbed, published again.
    async fn release(&mut self, pv: &Change) -> Result<()> {
        self.screen
            .step("The claim is deleted: the volume is scrubbed and published again");
        let disk = self.node.disk(pv.entry());
        let from = self.journal.end();
        let start = Instant::now();
        self.node.api.delete_claim(NAMESPACE, "orders")?;
        let of_it = |change: &Change| change.uid() == pv.uid();
        let released = self
            .journal
            .find(from, "its PV is Released", |c| of_it(c) && c.phase() == "Released")
            .await?;
        self.screen.timed("Released     its claim is gone", released.at - start);
        let terminating = self
            .journal
            .find(released.next, "its PV is deleted", |c| of_it(c) && c.is_terminating())
            .await?;
        self.screen.timed(
            "Terminating  nobody can bind it while it is scrubbed",
            terminating.at - start,
        );
        let gone = self
            .journal
            .find(terminating.next, "its PV goes once it is scrubbed", |c| {
                of_it(c) && c.gone
            })
            .await?;
        let left = listing(&disk)?;
        self.screen
            .timed("Scrubbed     the finalizer is removed, the PV goes", gone.at - start);
        let again = self.available(pv.entry(), gone.next).await?;
        ensure!(
            again.uid() != pv.uid(),
            "the PV of {} has the UID that it had",
            disk.display()
        );
        self.screen
            .timed("Available    clean, a new PV of the same name", again.at - start);
        self.screen.listing(pv.entry(), &left);
        self.screen.listing("old UID", &[pv.uid().to_owned()]);
        self.screen.listing("new UID", &[again.uid().to_owned()]);
        ensure!(left.is_empty(), "{} was not scrubbed: {left:?}", disk.display());
        let outside = self.node.root.join("outside");
        ensure!(
            fs::read_to_string(&outside).is_ok_and(|text| text == "not the tenant's"),
            "{}, where a link led to, was changed",
            outside.display()
        );
        self.screen.listing(
            "outside",
            &["untouched: the link was removed, not where it led".to_owned()],
        );
        Ok(())
    }

    /// A disk is mounted while everything runs.
    async fn hotplug(&mut self) -> Result<()> {
        self.screen.step("A third disk is mounted while it runs");
        let from = self.journal.end();
        let start = Instant::now();
        self.node.mount_tmpfs("disk-3")?;
        let pv = self.available("disk-3", from).await?;
        self.show(&pv, start);
        Ok(())
    }

    /// A release that cannot be scrubbed safely: it waits, and says for what.
    async fn nested_mount(&mut self, pv: &Change) -> Result<()> {
        self.screen
            .step("Something is mounted below a volume when its claim is deleted");
        self.claim("backups", pv).await?;
        let disk = self.node.disk(pv.entry());
        write(&disk.join("tenant.dat"), "the tenant's")?;
        let nested = disk.join("nfs");
        mounts::tmpfs(&nested, DISK_BYTES)?;
        write(&nested.join("precious.dat"), "somebody else's")?;
        let before = listing(&disk)?;

        let from = self.journal.end();
        let start = Instant::now();
        self.node.api.delete_claim(NAMESPACE, "backups")?;
        let terminating = self
            .journal
            .find(from, "the PV is deleted", |c| c.uid() == pv.uid() && c.is_terminating())
            .await?;
        let (reason, message) = self.event(pv.uid(), "mounted below it").await?;
        self.screen
            .timed(&format!("Held         event {reason}:"), start.elapsed());
        self.screen.quote(&message);
        let after = listing(&disk)?;
        self.screen.listing(pv.entry(), &after);
        ensure!(
            before == after,
            "{} was touched while something was mounted in it",
            disk.display()
        );
        self.screen.line("Nothing was touched. Now it is unmounted:");

        let start = Instant::now();
        mounts::unmount(&nested)?;
        let gone = self
            .journal
            .find(terminating.next, "the PV goes once it is scrubbed", |c| {
                c.uid() == pv.uid() && c.gone
            })
            .await?;
        let left = listing(&disk)?;
        self.screen
            .timed("Scrubbed     the finalizer is removed, the PV goes", gone.at - start);
        let again = self.available(pv.entry(), gone.next).await?;
        self.screen.timed("Available    clean", again.at - start);
        ensure!(left.is_empty(), "{} was not scrubbed: {left:?}", disk.display());
        Ok(())
    }

    /// Waits until an entry's PV is Available.
    async fn available(&self, entry: &str, from: usize) -> Result<Change> {
        let what = format!("the PV of {} is Available", self.node.disk(entry).display());
        self.journal
            .find(from, &what, |c| c.entry() == entry && c.is_available())
            .await
    }

    fn show(&self, pv: &Change, start: Instant) {
        let text = format!("{:<13}{}  {:<17}  {}", pv.phase(), pv.entry(), pv.name(), pv.capacity());
        self.screen.timed(&text, pv.at - start);
    }

    /// A claim is made, and the scheduler, who is played here, binds it.
    async fn claim(&self, name: &str, pv: &Change) -> Result<()> {
        let from = self.journal.end();
        let start = Instant::now();
        self.node.api.create_claim(NAMESPACE, name, CLASS);
        self.node.api.bind(NAMESPACE, name, pv.name())?;
        let bound = self
            .journal
            .find(from, &format!("claim {name} is bound"), |c| {
                c.uid() == pv.uid() && c.phase() == "Bound"
            })
            .await?;
        let text = format!("Bound        {}  {}  to claim {name}", bound.entry(), bound.name());
        self.screen.timed(&text, bound.at - start);
        Ok(())
    }

    /// Waits for an event about a PV; its reason and message.
    async fn event(&self, uid: &str, words: &str) -> Result<(String, String)> {
        let what = format!("an event says {words:?}");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let find = |api: &testkit::api::Api| {
            api.list("events").iter().find_map(|event| {
                let message = text(&event["message"]);
                let about = event["involvedObject"]["uid"] == uid && message.contains(words);
                about.then(|| (text(&event["reason"]), message))
            })
        };
        self.node.api.wait_for(&what, DEADLINE, find).await
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    path.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(path, text))
        .with_context(|| format!("write {}", path.display()))
}

/// Everything below a directory, hidden names and what links lead to included.
fn listing(directory: &Path) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(at) = open.pop() {
        let entries = fs::read_dir(&at).with_context(|| format!("read {}", at.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("read {}", at.display()))?.path();
            let name = path.strip_prefix(directory).unwrap_or(&path).display().to_string();
            if let Ok(target) = fs::read_link(&path) {
                lines.push(format!("{name} -> {}", target.display()));
            } else if path.is_dir() {
                lines.push(format!("{name}/"));
                open.push(path);
            } else {
                lines.push(name);
            }
        }
    }
    lines.sort();
    Ok(lines)
}
