//! What goes wrong, and when.

use std::{fmt, time::Duration};

use super::{Api, Request};

/// Something that happens to the next requests that match.
///
/// ```
/// use testkit::api::{Api, Fault};
/// let api = Api::new();
/// api.inject(Fault::status(503).verb("list").resource("persistentvolumes").times(2));
/// ```
///
/// Faults are tried in the order of their injection; the first that matches takes the request, and is used up after
/// [`Fault::times`] requests (1 unless told).
pub struct Fault {
    verb: Option<String>,
    resource: Option<String>,
    name: Option<String>,
    times: usize,
    effect: Effect,
}

/// What happens right before a request.
type Race = Box<dyn FnOnce(&Api) + Send>;

/// What a fault does.
pub(crate) enum Effect {
    Status(u16, Option<Duration>),
    Overload(Duration),
    Hang,
    Delay(Duration),
    Disconnect,
    LoseReply,
    Run(Option<Race>),
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effect = match &self.effect {
            Effect::Status(code, _) => format!("status {code}"),
            Effect::Overload(after) => format!("overload {after:?}"),
            Effect::Hang => "hang".to_owned(),
            Effect::Delay(by) => format!("delay {by:?}"),
            Effect::Disconnect => "disconnect".to_owned(),
            Effect::LoseReply => "lose reply".to_owned(),
            Effect::Run(_) => "run".to_owned(),
        };
        let any = |o: &Option<String>| o.clone().unwrap_or_else(|| "*".to_owned());
        let (verb, resource, name) = (any(&self.verb), any(&self.resource), any(&self.name));
        write!(f, "{}x {verb} {resource} {name}: {effect}", self.times)
    }
}

impl Fault {
    fn new(effect: Effect) -> Fault {
        Fault {
            verb: None,
            resource: None,
            name: None,
            times: 1,
            effect,
        }
    }

    /// Refuses with this HTTP status code and the `Status` object that goes with it.
    #[must_use]
    pub fn status(code: u16) -> Fault {
        Fault::new(Effect::Status(code, None))
    }

    /// Refuses with 429 and a Retry-After header of `retry_after`, in whole seconds.
    #[must_use]
    pub fn throttle(retry_after: Duration) -> Fault {
        Fault::new(Effect::Status(429, Some(retry_after)))
    }

    /// Refuses as API priority and fairness does: 429, plain text, and a Retry-After header in whole seconds.
    #[must_use]
    pub fn overload(retry_after: Duration) -> Fault {
        Fault::new(Effect::Overload(retry_after))
    }

    /// Never answers. The request has no effect.
    #[must_use]
    pub fn hang() -> Fault {
        Fault::new(Effect::Hang)
    }

    /// Waits (tokio time) before the request is looked at.
    #[must_use]
    pub fn delay(by: Duration) -> Fault {
        Fault::new(Effect::Delay(by))
    }

    /// The connection breaks before the request reaches the server.
    #[must_use]
    pub fn disconnect() -> Fault {
        Fault::new(Effect::Disconnect)
    }

    /// The request is carried out, but the connection breaks before the answer.
    #[must_use]
    pub fn lose_reply() -> Fault {
        Fault::new(Effect::LoseReply)
    }

    /// Runs `f` right before the request is carried out: the way to lose a race. Happens once, whatever `times` says.
    #[must_use]
    pub fn run(f: impl FnOnce(&Api) + Send + 'static) -> Fault {
        Fault::new(Effect::Run(Some(Box::new(f))))
    }

    /// Only requests with this verb (get, list, watch, create, update, patch, delete).
    #[must_use]
    pub fn verb(mut self, verb: &str) -> Fault {
        self.verb = Some(verb.to_owned());
        self
    }

    /// Only requests for this resource (plural name).
    #[must_use]
    pub fn resource(mut self, plural: &str) -> Fault {
        self.resource = Some(plural.to_owned());
        self
    }

    /// Only requests for an object of this name (of a create, the name in its body).
    #[must_use]
    pub fn named(mut self, name: &str) -> Fault {
        self.name = Some(name.to_owned());
        self
    }

    /// How many requests are hit. `usize::MAX` for all until [`Api::clear_faults`].
    #[must_use]
    pub fn times(mut self, times: usize) -> Fault {
        self.times = times;
        self
    }

    fn matches(&self, request: &Request) -> bool {
        let fits = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|w| w == is);
        fits(&self.verb, &request.verb) && fits(&self.resource, &request.resource) && fits(&self.name, &request.name)
    }
}

/// The effect on this request, if any fault matches; that fault is used up by one.
pub(crate) fn take(faults: &mut Vec<Fault>, request: &Request) -> Option<Effect> {
    let index = faults.iter().position(|f| f.times > 0 && f.matches(request))?;
    let fault = &mut faults[index];
    fault.times -= 1;
    let effect = match &mut fault.effect {
        Effect::Status(code, after) => Effect::Status(*code, *after),
        Effect::Overload(after) => Effect::Overload(*after),
        Effect::Hang => Effect::Hang,
        Effect::Delay(by) => Effect::Delay(*by),
        Effect::Disconnect => Effect::Disconnect,
        Effect::LoseReply => Effect::LoseReply,
        Effect::Run(f) => {
            fault.times = 0;
            Effect::Run(f.take())
        }
    };
    faults.retain(|f| f.times > 0);
    Some(effect)
}
