//! The objects, their versions and their history. Synchronous, without users, faults or streams.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};

use super::{
    metadata::{keep_what_clients_cannot_change, name_object, next_uid, now},
    resource::Resource,
    status::Status,
    validate::{add_finalizer, finalizers, set_defaults, validate, validate_update},
};

/// How many changes a watch may lie back, unless the test says otherwise.
const DEFAULT_WINDOW: usize = 10_000;

/// Where an object is stored. Sorts like etcd: by resource, namespace, name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) plural: &'static str,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(resource: &Resource, namespace: &str, name: &str) -> Key {
        Key {
            plural: resource.plural,
            namespace: if resource.namespaced {
                namespace.to_owned()
            } else {
                String::new()
            },
            name: name.to_owned(),
        }
    }

    /// As in the path of etcd, and of an answer.
    fn path(&self) -> String {
        let Key {
            plural,
            namespace,
            name,
        } = self;
        match namespace.as_str() {
            "" => format!("{plural}/{name}"),
            namespace => format!("{plural}/{namespace}/{name}"),
        }
    }

    pub(crate) fn resource(&self) -> &'static Resource {
        Resource::known(self.plural)
    }
}

/// One change of one object.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) key: Key,
    pub(crate) old: Option<Value>,
    pub(crate) new: Option<Value>,
}

/// How a request wants its write done.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WriteOptions {
    /// Check everything and store nothing.
    pub(crate) dry_run: bool,
    /// Write to `/status`: `spec` stays.
    pub(crate) status: bool,
    /// A PUT, not a PATCH: a UID is a precondition.
    pub(crate) put: bool,
}

/// All objects.
#[derive(Debug)]
pub(crate) struct Store {
    objects: BTreeMap<Key, Value>,
    version: u64,
    history: VecDeque<Change>,
    /// Watches can start at this version or later.
    floor: u64,
    window: usize,
}

impl Default for Store {
    fn default() -> Self {
        Store {
            objects: BTreeMap::new(),
            version: 1,
            history: VecDeque::new(),
            floor: 1,
            window: DEFAULT_WINDOW,
        }
    }
}

impl Store {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    pub(crate) fn set_window(&mut self, changes: usize) {
        self.window = changes;
        self.trim();
    }

    /// Forgets all history: every earlier version is too old to watch from.
    pub(crate) fn compact(&mut self) {
        // A version nobody has seen, so that even a client that is up to date is too old.
        self.version += 1;
        self.floor = self.version;
        self.history.clear();
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Value> {
        self.objects.get(key)
    }

    /// All objects of a resource, in all namespaces if `namespace` is empty.
    pub(crate) fn select<'a>(
        &'a self,
        resource: &Resource,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Key, &'a Value)> {
        let plural = resource.plural;
        self.objects
            .range(Key::new(resource, "", "")..)
            .take_while(move |(k, _)| k.plural == plural)
            .filter(move |(k, _)| namespace.is_empty() || k.namespace == namespace)
    }

    /// The changes after a version, oldest first.
    pub(crate) fn changes_after(&self, version: u64) -> impl Iterator<Item = &Change> {
        let start = self.history.partition_point(|c| c.version <= version);
        self.history.range(start..)
    }

    pub(crate) fn create(
        &mut self,
        resource: &Resource,
        namespace: &str,
        mut object: Value,
        options: WriteOptions,
    ) -> Result<Value, Status> {
        let api_version = resource.api_version();
        if object["kind"].as_str().is_some_and(|k| k != resource.kind)
            || object["apiVersion"].as_str().is_some_and(|v| v != api_version)
            || !object.is_object()
        {
            let given = [&object["kind"], &object["apiVersion"]].map(|v| v.as_str().unwrap_or_default());
            return Err(Status::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}",
                given[0], given[1], resource.kind
            )));
        }
        object["kind"] = resource.kind.into();
        object["apiVersion"] = api_version.as_str().into();
        name_object(resource, namespace, &mut object)?;
        let now = now();
        let uid = next_uid();
        let meta = &mut object["metadata"];
        meta["uid"] = uid.as_str().into();
        meta["creationTimestamp"] = now.as_str().into();
        meta["managedFields"] = json!([{"manager": "testkit", "operation": "Update", "apiVersion": api_version,
            "time": now, "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {}}}]);
        for not_the_clients in ["resourceVersion", "deletionTimestamp", "selfLink"] {
            meta.as_object_mut().map(|m| m.remove(not_the_clients));
        }
        let key = Key::new(resource, namespace, meta["name"].as_str().unwrap_or_default());
        set_defaults(resource, &mut object, &now);
        refuse(&key, &validate(resource, &object))?;
        if self.objects.contains_key(&key) {
            return Err(Status::already_exists(resource, &key.name));
        }
        if options.dry_run {
            return Ok(object);
        }
        Ok(self.commit(key, Some(object)))
    }

    /// Changes an object to what `change` makes of it, if all the server's rules allow that.
    pub(crate) fn update(
        &mut self,
        key: &Key,
        options: WriteOptions,
        change: impl FnOnce(&Value) -> Value,
    ) -> Result<Value, Status> {
        let resource = key.resource();
        let old = self.get(key).ok_or_else(|| Status::not_found(resource, &key.name))?;
        let mut new = change(old);
        let (meta, old_meta) = (&new["metadata"], &old["metadata"]);
        let differs = |field: &str| {
            let given = meta[field].as_str().unwrap_or_default();
            !given.is_empty() && old_meta[field] != given
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if differs("name") {
            let (name, url) = (text(&meta["name"]), &key.name);
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({url})"
            )));
        }
        let mut causes = Vec::new();
        if differs("uid") {
            let uid = text(&meta["uid"]);
            if options.put {
                let why = format!(
                    "StorageError: invalid object, Code: 4, Key: /registry/{}, ResourceVersion: 0, \
                     AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    key.path(),
                    text(&old_meta["uid"])
                );
                return Err(Status::conflict(resource, &key.name, &why));
            }
            let why = format!("Invalid value: {uid:?}: field is immutable");
            causes.push(("metadata.uid".to_owned(), why));
        }
        if differs("resourceVersion") {
            let why = "the object has been modified; please apply your changes to the latest version and try again";
            return Err(Status::conflict(resource, &key.name, why));
        }
        keep_what_clients_cannot_change(resource, options.status, old, &mut new);
        if new == *old && causes.is_empty() {
            return Ok(new);
        }
        causes.extend(validate(resource, &new));
        causes.extend(validate_update(resource, old, &new));
        refuse(key, &causes)?;
        if options.dry_run {
            return Ok(new);
        }
        let gone = new["metadata"]["deletionTimestamp"].is_string() && finalizers(&new).next().is_none();
        if gone {
            self.commit(key.clone(), None);
            return Ok(new);
        }
        Ok(self.commit(key.clone(), Some(new)))
    }

    /// Deletes an object, or marks it Terminating. The answer is the object's last, or present, state.
    pub(crate) fn delete(&mut self, key: &Key, delete_options: &Value, options: WriteOptions) -> Result<Value, Status> {
        let resource = key.resource();
        let object = self.get(key).ok_or_else(|| Status::not_found(resource, &key.name))?;
        let meta = &object["metadata"];
        for (field, name, fate) in [
            ("uid", "UID", "deleted and then recreated"),
            ("resourceVersion", "ResourceVersion", "modified"),
        ] {
            let wanted = delete_options["preconditions"][field].as_str();
            if let Some(wanted) = wanted.filter(|w| meta[field] != *w) {
                let found = meta[field].as_str().unwrap_or_default();
                let why = format!(
                    "the {name} in the precondition ({wanted}) does not match the {name} in record ({found}). The \
                     object might have been {fate}"
                );
                return Err(Status::precondition(resource, &key.name, &why));
            }
        }
        let mut object = object.clone();
        if delete_options["propagationPolicy"] == "Foreground" {
            add_finalizer(&mut object, "foregroundDeletion");
        }
        let finalized = finalizers(&object).next().is_none();
        if options.dry_run || !finalized && object["metadata"]["deletionTimestamp"].is_string() {
            return Ok(object);
        }
        if finalized {
            self.commit(key.clone(), None);
            return Ok(object);
        }
        object["metadata"]["deletionTimestamp"] = now().into();
        object["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        Ok(self.commit(key.clone(), Some(object)))
    }

    /// Stores or removes an object as it is, without any check; a Terminating one without finalizers is removed.
    pub(crate) fn force(&mut self, key: &Key, object: Option<Value>) {
        let gone = |o: &Value| o["metadata"]["deletionTimestamp"].is_string() && finalizers(o).next().is_none();
        let object = object.filter(|o| !gone(o));
        if object.as_ref() != self.get(key) {
            self.commit(key.clone(), object);
        }
    }

    fn commit(&mut self, key: Key, mut new: Option<Value>) -> Value {
        self.version += 1;
        if let Some(new) = &mut new {
            new["metadata"]["resourceVersion"] = self.version.to_string().into();
        }
        let old = match &new {
            Some(new) => self.objects.insert(key.clone(), new.clone()),
            None => self.objects.remove(&key),
        };
        let answer = new.clone().unwrap_or_default();
        self.history.push_back(Change {
            version: self.version,
            key,
            old,
            new,
        });
        self.trim();
        answer
    }

    fn trim(&mut self) {
        while self.history.len() > self.window {
            if let Some(forgotten) = self.history.pop_front() {
                self.floor = forgotten.version;
            }
        }
    }
}

fn refuse(key: &Key, causes: &[(String, String)]) -> Result<(), Status> {
    match causes {
        [] => Ok(()),
        causes => Err(Status::invalid(key.resource(), &key.name, causes)),
    }
}
