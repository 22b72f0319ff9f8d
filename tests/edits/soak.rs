//! Hundreds of random edits, good and broken, beside the life of volumes.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use fastrand::Rng;
use kube::ResourceExt;

use crate::node::{MODES, Node, in_worlds, phase};

/// For each permission mode.
const EDITS: usize = 250;
/// How often a volume of a class that no edit names is bound, written to, and released meanwhile, at the least.
const LIVES: usize = 12;

/// The classes that edits name.
struct Classes {
    /// Its volumes are bound and released.
    steady: String,
    /// Its volume is never claimed.
    idle: String,
    edited: [String; 3],
}

impl Classes {
    fn good(&self, node: &Node) -> String {
        let edited = self.edited.iter().map(|class| node.settings_of(class, ""));
        self.untouched(node) + &edited.collect::<String>()
    }

    fn untouched(&self, node: &Node) -> String {
        node.settings_of(&self.steady, "") + &node.settings_of(&self.idle, "")
    }

    /// A map in which two classes are as ever, and each of the others sound, changed, broken or away.
    fn random(&self, node: &Node, rng: &mut Rng) -> String {
        let mut parts = vec![self.untouched(node)];
        for class in &self.edited {
            let directory = node.path(class).display().to_string();
            let part = match rng.u8(..12) {
                0 | 1 => String::new(),
                2 => node.settings_of(class, "  namePattern: none*\n"),
                3 => node.settings_of(class, "  fsType: xfs\n  unknown: x\n"),
                4 => node.settings_of(class, "").replace(&directory, "/nowhere/at/all"),
                5 => format!("{class}:\n  hostDir: relative\n  mountDir: {directory}\n"),
                6 => format!("{class}: []\n"),
                7 => node.settings_of(class, "  volumeMode: Sometimes\n"),
                8 => node.settings_of(class, "  namePattern: '['\n"),
                // It takes what the steady one has.
                9 => node.settings_of(&self.steady, "").replacen(&self.steady, class, 1),
                _ => node.settings_of(class, ""),
            };
            parts.push(part);
        }
        rng.shuffle(&mut parts);
        parts.concat()
    }
}

fn edit(node: &Node, classes: &Classes, rng: &mut Rng) -> Result<()> {
    let map = classes.random(node, rng);
    match rng.u8(..16) {
        0 => node.configure("storageClassMap", ""),
        1 => node.configure("storageClassMap", "# nothing\n"),
        2 => node.edit([("storageClassMap", None)]),
        3 => node.configure("storageClassMap", &format!("{map}- broken: [\n")),
        4 => node.configure("storageClassMap", "just text"),
        5 => node.edit([
            ("storageClassMap", None),
            ("labelsForPV", None),
            ("useJobForCleaning", None),
            ("minResyncPeriod", None),
        ]),
        6 => node.configure("labelsForPV", "team: [\n"),
        7 => node.configure("useJobForCleaning", ["yes", "no", "maybe"][rng.usize(..3)]),
        8 => node.edit([
            ("minResyncPeriod", Some(["1m", "soon"][rng.usize(..2)])),
            ("somethingElse", Some("x")),
        ]),
        9 => node.configure("storageClassMap", &classes.good(node)),
        _ => node.configure("storageClassMap", &map),
    }
}

/// What is done to volumes while the configuration is edited. The steady class never misses a beat.
async fn lives(node: &Node, classes: &Classes, edits: &Cell<usize>) -> Result<()> {
    let mut round = 0;
    while round < LIVES || edits.get() < EDITS {
        let claim = format!("s{round}");
        let bound = node.claim(&claim, &classes.steady).await?;
        let path = bound.spec.as_ref().unwrap().local.as_ref().unwrap().path.clone();
        let file = std::path::Path::new(&path).join("file");
        std::fs::write(&file, "secret")?;
        node.release(&claim).await?;
        let entry = path.rsplit('/').next().unwrap();
        node.again(entry, &bound).await?;
        ensure!(!file.exists(), "published with its data");
        round += 1;
    }
    Ok(())
}

#[test]
fn hundreds_of_edits_end_nothing_and_cost_no_class_that_they_leave_alone() {
    in_worlds("soak_of_edits", &MODES, async |node: Rc<Node>| {
        let seed = std::env::var("EDITS_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        println!("EDITS_SEED={seed}");
        let mut rng = Rng::with_seed(seed);
        let classes = Classes {
            steady: node.class("Delete", "").await?,
            idle: node.class("Delete", "").await?,
            edited: [
                node.class("Delete", "").await?,
                node.class("Delete", "").await?,
                node.class("Delete", "").await?,
            ],
        };
        node.tmpfs(&classes.steady, "steady")?;
        node.tmpfs(&classes.idle, "idle")?;
        for (number, class) in classes.edited.iter().enumerate() {
            node.tmpfs(class, &format!("disk{number}a"))?;
            node.tmpfs(class, &format!("disk{number}b"))?;
        }
        let all = [
            "steady", "idle", "disk0a", "disk0b", "disk1a", "disk1b", "disk2a", "disk2b",
        ];
        let address = node.listen()?;
        node.start().await?;
        let idle = node.exactly(&all).await?.remove("idle").unwrap();
        // One is bound all the time, one is released in the middle of it.
        let kept = node.claim("kept", &classes.edited[0]).await?;
        let path = kept.spec.as_ref().unwrap().local.as_ref().unwrap().path.clone();
        let data = std::path::Path::new(&path).join("data");
        std::fs::write(&data, "precious")?;
        node.claim("released", &classes.edited[1]).await?;
        let edits = Cell::new(0);
        let editing = async {
            while edits.get() < EDITS {
                edit(&node, &classes, &mut rng)?;
                edits.set(edits.get() + 1);
                if edits.get() == EDITS / 2 {
                    node.release("released").await?;
                }
                // As long as the daemon may take: sometimes several edits come into one pass.
                tokio::time::sleep(Duration::from_millis(rng.u64(..60))).await;
                let now = node.published().await?;
                let still = now.values().any(|pv| pv.uid() == kept.uid() && phase(pv) == "Bound");
                ensure!(still, "a bound PV went: {:?}", now.keys());
                let as_ever = now.get("idle").is_some_and(|pv| pv.uid() == idle.uid());
                ensure!(as_ever, "a volume of a class that no edit names went");
            }
            anyhow::Ok(())
        };
        futures::future::try_join(editing, lives(&node, &classes, &edits)).await?;
        ensure!(std::fs::read_to_string(&data)? == "precious");
        let good = classes.good(&node);
        node.edit([
            ("storageClassMap", Some(good.as_str())),
            ("labelsForPV", None),
            ("useJobForCleaning", None),
            ("minResyncPeriod", None),
        ])?;
        node.release("kept").await?;
        node.exactly(&all).await?;
        ensure!(!data.exists());
        let (code, body) = crate::node::http_get(address, "/readyz").await?;
        ensure!(code == 200, "{body}");
        Ok(())
    });
}
