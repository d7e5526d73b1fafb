//! Builds the credentials that `[identity]` describes.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use outrigger_identity::credentials::{Credentials, Keys};
use outrigger_identity::jwks::Source;
use outrigger_identity::jwt::{ClaimNames, Signers, Users};
use outrigger_identity::keys::{self, Digest, Entry, KeyDigest, KeyTable};
use outrigger_tokens::{Algorithm, Key, Rules};

use super::{Identity, Jwt, UnknownKeys};
use crate::environment::{Environment, JWT_SECRET, KEY_SECRET};
use crate::error::{Place, Problem};
use crate::tree::{Node, Step};
use crate::units::Span;

/// Minimum length of a secret, in bytes.
const SECRET_BYTES: usize = 32;

/// Maximum number of errors reported for one file of keys.
const MOST_TOLD: usize = 5;

/// Builds the credentials that `raw` describes. Adds errors to `problems`, with their places.
pub fn build(
    raw: &Identity,
    root: &Node,
    environment: Environment<'_>,
    problems: &mut Vec<Problem>,
) -> Arc<Credentials> {
    let mut builder = Builder { root, environment, problems };
    let table = builder.keys(raw);
    let users = builder.users(&raw.jwt);
    let counts_unknown = raw.unknown_keys == UnknownKeys::Count;
    Arc::new(Credentials::new(Keys { field: raw.key_field.0.0.clone(), table, counts_unknown }, users))
}

struct Builder<'a> {
    root: &'a Node,
    environment: Environment<'a>,
    problems: &'a mut Vec<Problem>,
}

const JWT: [Step<'static>; 2] = [Step::Key("identity"), Step::Key("jwt")];

impl Builder<'_> {
    fn complain(&mut self, place: Place, message: impl Into<String>, hint: &str) {
        self.problems.push(Problem::new(place, message, hint));
    }

    fn place(&self, path: &[Step<'_>]) -> Place {
        self.root.nearest(path).1.place.clone()
    }

    fn jwt_place(&self, key: &'static str) -> Place {
        self.place(&[JWT[0], JWT[1], Step::Key(key)])
    }

    /// A variable with a secret of at least 32 bytes.
    fn secret(&mut self, variable: &'static str) -> Option<String> {
        let secret = (self.environment)(variable).filter(|secret| !secret.trim().is_empty())?;
        if secret.len() < SECRET_BYTES {
            let message = format!("has {} bytes, which is too short", secret.len());
            self.complain(Place::Variable(variable.to_owned()), message, "use at least 32 random bytes");
        }
        Some(secret)
    }

    fn keys(&mut self, raw: &Identity) -> KeyTable {
        let mut found = Found::default();
        for (index, key) in raw.keys.iter().enumerate() {
            let path = [Step::Key("identity"), Step::Key("keys"), Step::Index(index)];
            let name = self.place(&[path[0], path[1], path[2], Step::Key("name")]);
            if !keys::is_name(&key.name) {
                let message = "`name` needs 1 to 64 of letters, digits, - . _ and @";
                self.complain(name.hidden(), message, "it names the key's owner, and is not the key");
                continue;
            }
            let (written, which) = match (&key.sha256, &key.hmac_sha256) {
                (Some(text), None) => (text, "sha256"),
                (None, Some(text)) => (text, "hmac_sha256"),
                _ => {
                    let message = format!("the key of {:?} needs either `sha256` or `hmac_sha256`", key.name);
                    self.complain(name.hidden(), message, "`printf %s KEY | sha256sum` makes the first");
                    continue;
                }
            };
            let place = self.place(&[path[0], path[1], path[2], Step::Key(which)]).hidden();
            let Some(digest) = Digest::from_hex(written) else {
                let message = format!("`{which}` needs 64 hexadecimal digits");
                self.complain(place, message, "not the key itself: `printf %s KEY | sha256sum` makes the digest");
                continue;
            };
            let digest = if which == "sha256" { KeyDigest::Sha256(digest) } else { KeyDigest::HmacSha256(digest) };
            let entry = Entry { name: key.name.clone(), digest, tier: key.tier.0 };
            if let Err(message) = found.add(entry, place.clone(), &format!("the key of {:?}", key.name)) {
                self.complain(place, message, TWICE_HINT);
            }
        }
        if let Some(file) = &raw.keys_file {
            self.keys_of_file(file, &mut found);
        }
        let secret = if let Some(place) = found.first_keyed.clone() {
            let secret = self.secret(KEY_SECRET);
            if secret.is_none() {
                let message = format!("`hmac_sha256` needs the secret that it is keyed with, in {KEY_SECRET}");
                self.complain(place, message, "set it in the environment, at least 32 random bytes; or use `sha256`");
            }
            secret
        } else {
            None
        };
        KeyTable::new(found.entries, secret.as_deref().map(str::as_bytes))
    }

    fn keys_of_file(&mut self, file: &Path, found: &mut Found) {
        let place = self.place(&[Step::Key("identity"), Step::Key("keys_file")]);
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(e) => {
                let message = format!("`keys_file` cannot be read: {}: {e}", file.display());
                return self.complain(place, message, "name a file that this process may read");
            }
        };
        let mut mistakes = 0;
        for (number, line) in (1..).zip(text.lines()) {
            let at = format!("{}:{number}", file.display());
            let outcome = match keys::parse_line(line) {
                Ok(None) => Ok(()),
                Ok(Some(entry)) => found.add(entry, place.clone(), &at).map_err(|message| (message, TWICE_HINT)),
                Err(problem) => Err((problem.to_owned(), "write name:sha256=HEX:tier; `#` begins a comment")),
            };
            if let Err((problem, hint)) = outcome {
                mistakes += 1;
                if mistakes <= MOST_TOLD {
                    self.complain(place.clone(), format!("{at}: {problem}"), hint);
                }
            }
        }
        if mistakes > MOST_TOLD {
            let message = format!("{}: {} more lines are wrong", file.display(), mistakes - MOST_TOLD);
            self.complain(place, message, "fix these first");
        }
    }

    fn users(&mut self, raw: &Jwt) -> Option<Users> {
        let signers = self.signers(raw)?;
        let times = [("leeway", raw.leeway.0.0, 0, 3600), ("jwks_refresh", raw.jwks_refresh.0.0, 1, u64::MAX)];
        for (key, span, least, most) in times {
            if !(least..=most).contains(&span.as_secs()) {
                let message = format!("`{key}` cannot be {}", Span(span));
                let hint = if key == "leeway" { "at most \"1h\"; synchronise the clocks" } else { "at least \"1s\"" };
                self.complain(self.jwt_place(key), message, hint);
            }
        }
        let texts = [
            ("audience", raw.audience.as_deref()),
            ("issuer", raw.issuer.as_deref()),
            ("user_claim", Some(raw.user_claim.as_str())),
            ("tier_claim", Some(raw.tier_claim.as_str())),
        ];
        for (key, text) in texts {
            if text.is_some_and(|text| text.trim().is_empty()) {
                self.complain(self.jwt_place(key), format!("`{key}` must not be empty"), "leave it out instead");
            }
        }
        let (issuer, audience) = (raw.issuer.as_deref(), raw.audience.as_deref());
        let rules = Rules::new(raw.algorithm.into(), issuer, audience, raw.leeway.0.0.as_secs());
        let names = ClaimNames { user: raw.user_claim.clone(), tier: raw.tier_claim.clone() };
        Some(Users::new(rules, signers, names, raw.cache.get() as usize))
    }

    /// The keys that verify tokens; `None` without any, or after an error.
    fn signers(&mut self, raw: &Jwt) -> Option<Signers> {
        let variable = self.secret(JWT_SECRET);
        let mut sources = Vec::new();
        sources.extend(variable.is_some().then(|| Place::Variable(JWT_SECRET.to_owned())));
        sources.extend(raw.secret_file.is_some().then(|| self.jwt_place("secret_file")));
        sources.extend(raw.key_file.is_some().then(|| self.jwt_place("key_file")));
        sources.extend(raw.jwks_url.is_some().then(|| self.jwt_place("jwks_url")));
        if sources.is_empty() {
            let (found, node) = self.root.nearest(&JWT);
            if found == JWT.len() {
                let message = "`jwt` has no key to verify tokens with";
                let hint = "set secret_file, key_file, jwks_url or OUTRIGGER_JWT_SECRET; or leave the section out";
                self.complain(node.place.clone(), message, hint);
            }
            return None;
        }
        if sources.len() > 1 {
            let message = "tokens are verified with one kind of key, and this is a second one";
            self.complain(
                sources.swap_remove(1),
                message,
                "keep one of secret_file, key_file, jwks_url and the variable",
            );
            return None;
        }
        let algorithm = Algorithm::from(raw.algorithm);
        let is_secret = variable.is_some() || raw.secret_file.is_some();
        if is_secret != (algorithm == Algorithm::Hs256) {
            let message = format!("`algorithm` is {}, which needs another kind of key", algorithm.name());
            let hint = if is_secret {
                "a secret goes with \"HS256\"; the other algorithms have key_file or jwks_url"
            } else {
                "write algorithm = \"RS256\", \"ES256\" or \"EdDSA\"; \"HS256\" needs a secret, which a public key is not"
            };
            self.complain(sources.swap_remove(0), message, hint);
            return None;
        }
        if let Some(secret) = variable {
            // A short secret has been reported already.
            return Key::secret(secret.as_bytes()).ok().map(Signers::Fixed);
        }
        if let Some(file) = &raw.secret_file {
            let text = self.read("secret_file", file)?;
            let secret = text.strip_suffix(b"\n").map_or(&*text, |text| text.strip_suffix(b"\r").unwrap_or(text));
            return self.key("secret_file", file, Key::secret(secret), "use at least 32 random bytes");
        }
        if let Some(file) = &raw.key_file {
            let pem = self.read("key_file", file)?;
            let hint = "give the PEM of a public key that fits `algorithm`";
            return self.key("key_file", file, Key::pem(algorithm, &pem), hint);
        }
        let url = raw.jwks_url.as_ref()?.0.0.clone();
        match Source::new(url, algorithm, raw.jwks_refresh.0.0) {
            Ok(source) => Some(Signers::Fetched(Arc::new(source))),
            Err(e) => {
                let message = format!("`jwks_url` cannot be used: {e}");
                self.complain(self.jwt_place("jwks_url"), message, "install ca-certificates, or set SSL_CERT_FILE");
                None
            }
        }
    }

    fn key(
        &mut self,
        name: &'static str,
        file: &Path,
        key: Result<Key, outrigger_tokens::KeyError>,
        hint: &str,
    ) -> Option<Signers> {
        match key {
            Ok(key) => Some(Signers::Fixed(key)),
            Err(e) => {
                self.complain(self.jwt_place(name), format!("`{name}`: {} {e}", file.display()), hint);
                None
            }
        }
    }

    fn read(&mut self, name: &'static str, file: &Path) -> Option<Vec<u8>> {
        match std::fs::read(file) {
            Ok(bytes) => Some(bytes),
            Err(e) => {
                let message = format!("`{name}` cannot be read: {}: {e}", file.display());
                self.complain(self.jwt_place(name), message, "name a file that this process may read");
                None
            }
        }
    }
}

const TWICE_HINT: &str = "a name stands for one key, and a key for one name";

/// The keys so far, and indexes for finding duplicates.
#[derive(Default)]
struct Found {
    entries: Vec<Entry>,
    names: HashSet<String>,
    digests: HashMap<KeyDigest, usize>,
    first_keyed: Option<Place>,
}

impl Found {
    /// Adds a key; `at` is its place, for the error about a later duplicate.
    fn add(&mut self, entry: Entry, place: Place, at: &str) -> Result<(), String> {
        if let Some(other) = self.digests.get(&entry.digest) {
            return Err(format!("{at} has the same digest as the key of {:?}", self.entries[*other].name));
        }
        if !self.names.insert(entry.name.clone()) {
            return Err(format!("{at}: another key is called {:?} already", entry.name));
        }
        if matches!(entry.digest, KeyDigest::HmacSha256(_)) {
            self.first_keyed.get_or_insert(place);
        }
        self.digests.insert(entry.digest, self.entries.len());
        self.entries.push(entry);
        Ok(())
    }
}
