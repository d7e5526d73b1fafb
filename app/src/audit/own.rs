//! The app's own audit entries: who reads, writes, deletes, lists and finds which documents.
//!
//! The statement that performs the operation also inserts the entry, so one never exists without the other: every
//! response that shows or changes a document is in the audit log, and if the log cannot be written, the operation
//! fails too. These entries are not chained: a chain has a single writer, and the app's Machines write concurrently.

use axum::extract::FromRequestParts;
use http::request::Parts;
use jiff::Timestamp;
use outrigger_policy::audit::{Draft, EventType, Outcome, Time};
use outrigger_policy::flags::{Feature, Mode, Subject};
use outrigger_trail::keys::SubjectKind;
use outrigger_trail::store::APP_CHAIN;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::App;
use crate::audit::Audit;
use crate::audit::metrics::AuditMetrics;
use crate::auth::Principal;
use crate::error::ApiError;
use crate::exchange::RequestId;
use crate::postgres::Param;

/// Actor of requests without a name: authentication is off, or the token has no `sub`.
const ANONYMOUS: &str = "anonymous";
/// Actor of operations that no client requested.
const OURSELVES: &str = "outrigger";

/// An operation on documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Create(Uuid),
    Read(Uuid),
    Delete(Uuid),
    /// The app removes a document again because ChromaDB rejected it.
    Undo(Uuid),
    List,
    Search,
}

impl Act {
    /// Event type, action, method, route and the status on success.
    const fn table(self) -> (EventType, &'static str, &'static str, &'static str, Option<u16>) {
        match self {
            Self::Create(_) => (EventType::Write, "create", "POST", "/api/v1/documents", Some(201)),
            Self::Read(_) => (EventType::Read, "read", "GET", "/api/v1/documents/{id}", Some(200)),
            Self::Delete(_) => (EventType::Delete, "delete", "DELETE", "/api/v1/documents/{id}", Some(204)),
            // The client's status depends on the reason.
            Self::Undo(_) => (EventType::Delete, "undo", "POST", "/api/v1/documents", None),
            Self::List => (EventType::Read, "list", "GET", "/api/v1/documents", Some(200)),
            Self::Search => (EventType::Read, "search", "POST", "/api/v1/documents/search", Some(200)),
        }
    }

    const fn document(self) -> Option<Uuid> {
        match self {
            Self::Create(id) | Self::Read(id) | Self::Delete(id) | Self::Undo(id) => Some(id),
            Self::List | Self::Search => None,
        }
    }
}

/// The principal of a request, and the request's id.
#[derive(Clone, Debug)]
pub struct Asker {
    principal: Principal,
    request_id: String,
}

impl FromRequestParts<App> for Asker {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        let missing = || ApiError::Internal("a request without a principal or a request id".to_owned());
        let principal = parts.extensions.get::<Principal>().cloned().ok_or_else(missing)?;
        let RequestId(request_id) = parts.extensions.get::<RequestId>().cloned().ok_or_else(missing)?;
        Ok(Self { principal, request_id })
    }
}

impl Audit {
    /// Counts the operation and returns its entry; `None` unless the flag is `enforce` for this principal and there
    /// is a pseudonym key.
    pub fn entry(&self, metrics: &AuditMetrics, asker: &Asker, act: Act) -> Option<Entry> {
        let keys = self.pseudonyms.as_ref()?;
        let (event, ..) = act.table();
        let mode = self.mode(&asker.principal);
        // Every write prepares its undo, which is rarely used, so it is not counted.
        if mode != Mode::Off && !matches!(act, Act::Undo(_)) {
            metrics.events.with_label_values(&[event.name(), mode.name()]).inc();
        }
        if mode != Mode::Enforce {
            return None;
        }
        let of = |kind: SubjectKind, name: &str| {
            let subject = format!("{}:{name}", kind.name());
            (keys.pseudonym(kind, subject.as_bytes()), kind.name())
        };
        let actor = match &asker.principal {
            _ if matches!(act, Act::Undo(_)) => (OURSELVES.to_owned(), "system"),
            Principal::User(name) if !name.is_empty() => of(SubjectKind::User, name),
            Principal::Key(name) => of(SubjectKind::Key, name),
            Principal::User(_) | Principal::Anybody => (ANONYMOUS.to_owned(), "system"),
        };
        Some(Entry::new(&self.machine, &asker.request_id, act, actor, Timestamp::now(), Uuid::now_v7()))
    }

    fn mode(&self, principal: &Principal) -> Mode {
        let (id, user) = match principal {
            Principal::User(name) => (name.as_str(), Some(name.as_str())),
            Principal::Key(name) => (name.as_str(), None),
            // Without a name, percentages of the flag apply per Machine.
            Principal::Anybody => (self.machine.as_str(), None),
        };
        // The peer address is the proxy's and says nothing about the client.
        let address = std::net::IpAddr::from([127, 0, 0, 1]);
        self.flag.mode_for(Feature::AuditTrail, Subject { id, user, address })
    }

    /// Maps an error of a statement that includes an entry: a failure to write the audit log becomes
    /// [`ApiError::Unaudited`].
    pub fn blame(&self, error: ApiError) -> ApiError {
        match error {
            ApiError::Internal(why) if why.contains("audit_events") => {
                // If a partition is missing, the upkeep task can create it.
                self.wanting.notify_one();
                ApiError::Unaudited(why)
            }
            error => error,
        }
    }
}

/// An audit entry of the app, ready to become part of a statement.
#[derive(Clone, Debug)]
pub struct Entry {
    time: Timestamp,
    id: Uuid,
    class: &'static str,
    machine: String,
    event: &'static str,
    action: &'static str,
    status: Option<i32>,
    actor: String,
    request_id: String,
    route: &'static str,
    /// The line without its closing brace.
    line: String,
}

impl Entry {
    /// `actor` is the pseudonym and its kind.
    fn new(
        machine: &str,
        request_id: &str,
        act: Act,
        (actor, kind): (String, &'static str),
        now: Timestamp,
        id: Uuid,
    ) -> Self {
        let (event, action, method, route, status) = act.table();
        let who = format!(r#""actor":{{"id":"{actor}","kind":"{kind}"}}"#);
        let document = act.document().map(|id| id.to_string());
        let resource = document.as_ref().map(|id| ("id", id.as_bytes()));
        // Rounded to microseconds, so that the column and the line hold the same time.
        let time = Time(now.as_microsecond());
        let draft = Draft {
            request_id: Some(request_id),
            action: Some(action),
            method: Some(method),
            route: Some(route),
            resource: resource.as_slice(),
            status,
            ..Draft::new(id.as_u128(), time, machine, event, Outcome::Success, &who)
        };
        let mut line = Vec::with_capacity(512);
        draft.write_unchained(event.class(), &mut line);
        line.pop();
        Self {
            time: Timestamp::from_microsecond(time.0).unwrap_or(now),
            id,
            class: event.class().name(),
            machine: machine.to_owned(),
            event: event.name(),
            action,
            status: status.map(i32::from),
            actor,
            request_id: request_id.to_owned(),
            route,
            // The line is always UTF-8.
            line: String::from_utf8_lossy(&line).into_owned(),
        }
    }

    /// Number of parameters that [`Self::params`] returns.
    pub const PARAMS: usize = 12;

    /// Returns a further part of a `WITH` that inserts the entry if `source`, the name of an earlier part, has any
    /// row. Its parameters are numbered after the first `before`.
    pub fn with_any(&self, source: &str, before: usize) -> String {
        self.insert(&format!("(SELECT FROM {source} LIMIT 1) AS act"), "'}'", before)
    }

    /// Like [`Self::with_any`], for operations that return any number of documents: always inserts the entry; `shown`
    /// is a query for their ids.
    pub fn with_all(&self, shown: &str, before: usize) -> String {
        let ids = format!(r#"(SELECT string_agg('"' || id || '"', ',') AS ids FROM ({shown}) AS shown) AS act"#);
        self.insert(&ids, r#"',"details":{"documents":[' || coalesce(act.ids, '') || ']}}'"#, before)
    }

    fn insert(&self, from: &str, ending: &str, before: usize) -> String {
        let p = |n: usize| before + n;
        format!(
            ", trail AS (INSERT INTO audit_events (chain, class, time, id, machine, type, action, outcome, status, actor,
                request_id, route, entry)
            SELECT '{APP_CHAIN}', ${}, ${}, ${}, ${}, ${}, ${}, ${}, ${}, ${}, ${}, ${}, ${} || {ending} FROM {from})",
            p(1), p(2), p(3), p(4), p(5), p(6), p(7), p(8), p(9), p(10), p(11), p(12)
        )
    }

    /// The parameters of the part that [`Self::with_any`] or [`Self::with_all`] returns.
    pub fn params(&self) -> [Param<'_>; Self::PARAMS] {
        [
            (&self.class, Type::TEXT),
            (&self.time, Type::TIMESTAMPTZ),
            (&self.id, Type::UUID),
            (&self.machine, Type::TEXT),
            (&self.event, Type::TEXT),
            (&self.action, Type::TEXT),
            (&"success", Type::TEXT),
            (&self.status, Type::INT4),
            (&self.actor, Type::TEXT),
            (&self.request_id, Type::TEXT),
            (&self.route, Type::TEXT),
            (&self.line, Type::TEXT),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::metrics::Metrics;
    use outrigger_policy::flags::Flag;

    fn audit(keys: &[&str], switch: &str) -> Audit {
        let arguments = [&["outrigger-app"], keys].concat();
        let settings = Settings::read(arguments.into_iter().map(Into::into)).unwrap();
        Audit::new(&settings.audit, Flag::always(switch.parse().unwrap()), "m1".to_owned()).unwrap()
    }

    fn asker(principal: Principal) -> Asker {
        Asker { principal, request_id: "r1".to_owned() }
    }

    const KEY: &[&str] = &["--audit-keys=k1:0123456789abcdef0123456789abcdef"];

    #[test]
    fn an_entry_names_the_actor_the_action_and_the_document() {
        let entry = Entry::new(
            "m1",
            "r\"1",
            Act::Read(Uuid::from_u128(7)),
            ("u_x".to_owned(), "user"),
            "2026-11-24T14:00:00.0000019Z".parse().unwrap(),
            Uuid::from_u128(1),
        );
        insta::assert_snapshot!(entry.line, @r#"{"class":"data","id":"00000000-0000-0000-0000-000000000001","time":"2026-11-24T14:00:00.000001Z","machine":"m1","request_id":"r\"1","type":"data.read","action":"read","method":"GET","route":"/api/v1/documents/{id}","resource":{"id":"00000000-0000-0000-0000-000000000007"},"outcome":"success","status":200,"actor":{"id":"u_x","kind":"user"}"#);
        assert_eq!(entry.time.as_microsecond() % 10, 1);
    }

    #[test]
    fn actors_are_distinct_pseudonyms() {
        let (audit, metrics) = (audit(KEY, "true"), Metrics::new().unwrap().audit);
        let actor = |principal| audit.entry(&metrics, &asker(principal), Act::List).unwrap().actor;
        let (user, key) = (actor(Principal::User("ann".to_owned())), actor(Principal::Key("ann".to_owned())));
        assert!(user.starts_with("u_") && key.starts_with("k_") && user[2..] != key[2..], "{user} {key}");
        assert_eq!(actor(Principal::Anybody), "anonymous");
        assert_eq!(actor(Principal::User(String::new())), "anonymous");
    }

    #[test]
    fn off_writes_no_entry_and_monitor_only_counts() {
        let metrics = Metrics::new().unwrap().audit;
        let counted = |mode: &str| metrics.events.with_label_values(&["data.read", mode]).get();
        let ann = asker(Principal::User("ann".to_owned()));
        assert!(audit(&[], "true").entry(&metrics, &ann, Act::List).is_none());
        assert!(audit(KEY, "false").entry(&metrics, &ann, Act::List).is_none());
        assert!(audit(KEY, "0%").entry(&metrics, &ann, Act::List).is_none());
        assert_eq!((counted("enforce"), counted("monitor")), (0, 0));
        assert!(audit(KEY, "monitor").entry(&metrics, &ann, Act::List).is_none());
        assert!(audit(KEY, "true").entry(&metrics, &ann, Act::List).is_some());
        assert_eq!((counted("enforce"), counted("monitor")), (1, 1));
    }
}
