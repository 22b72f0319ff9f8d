//! What a pass has come to, for people.

use std::collections::BTreeMap;

use super::Daemon;
use crate::cluster::{Owner, Ownership};
use crate::observed::Observed;
use crate::plan::Volume;
use crate::status::PersistentVolumes;

impl Daemon {
    /// Puts a look on the board. It may be that nothing can be planned from it.
    pub(super) fn show_look(&self, observed: &Observed) {
        self.board.looked(observed);
        self.show_scrubs();
    }

    fn show_scrubs(&self) {
        if self.running.is_empty() {
            return self.board.scrubs(BTreeMap::new());
        }
        let store = self.shared.store();
        let pvs = store.cluster().pvs.values();
        let names: BTreeMap<&str, &str> = pvs.map(|pv| (pv.uid.as_str(), pv.name.as_str())).collect();
        let running = self.running.iter().map(|(uid, (progress, _))| {
            let name = names.get(uid.as_str()).copied().unwrap_or(uid); // A PV that is gone has no name any more.
            (name.to_owned(), progress.clone())
        });
        self.board.scrubs(running.collect());
    }

    /// Puts the rows of a plan, and the scrubs that run after its actions were started, on the board.
    pub(super) fn show(&self, volumes: Vec<Volume>, ownership: &Ownership) {
        let store = self.shared.store();
        let pvs = &store.cluster().pvs;
        let own = pvs.values().filter(|pv| matches!(ownership.of(pv), Owner::Ours));
        let mut count = PersistentVolumes {
            total: 0,
            with_finalizer: 0,
        };
        for pv in own {
            count.total += 1;
            count.with_finalizer += usize::from(pv.has_our_finalizer());
        }
        drop(store);
        self.show_scrubs();
        self.board.planned(volumes, count, self.mode);
    }
}
