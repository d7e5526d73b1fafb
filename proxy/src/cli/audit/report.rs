//! `outrigger audit report`: the record of processing activities (GDPR, Art. 30(1)), from the configuration in force.
//!
//! The record contains what the program knows: which data is recorded, about whom, for how long, and how it is protected.
//! The rest comes from `[audit.record]`; missing parts are listed as missing.

use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use outrigger_policy::audit::{Class, Declared, Durability, EventType, Outcome};
use outrigger_policy::flags::Feature;
use outrigger_rules::config::Config;
use outrigger_rules::sections::audit::AuditRules;
use outrigger_rules::units::Span;
use serde_json::{Map, Value, json};

use super::act::{Act, record_first};
use super::export::create;
use super::{AuditError, By, Context, Place, now, text};

/// The output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Markdown.
    Md,
    /// An HTML page.
    Html,
    /// JSON, for programs.
    Json,
}

/// Options of `outrigger audit report`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The location of the audit log.
    #[command(flatten)]
    pub place: Place,
    /// The output format.
    #[arg(long, value_enum, default_value = "md")]
    format: Format,
    /// The output file; it must not exist yet. Default: standard output.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The operator.
    #[command(flatten)]
    by: By,
}

/// Runs `outrigger audit report`.
pub(super) fn run(context: &Context, options: &Options) -> Result<ExitCode, AuditError> {
    let config = context.config()?;
    let document = document(&config, &now().to_string())?;
    let content = match if options.place.json { Format::Json } else { options.format } {
        Format::Md => markdown(&document),
        Format::Html => html(&document),
        Format::Json => as_json(&document),
    };
    let file = options.output.as_deref().map(|path| create(path).map(|file| (file, path))).transpose()?;
    let act = Act {
        event: EventType::AdminAction,
        action: "audit.report",
        outcome: Outcome::Success,
        by: &options.by,
        subject: None,
        details: Map::new(),
    };
    if let Err(e) = record_first(context, &act) {
        if let Some((_, path)) = file {
            let _ = std::fs::remove_file(path);
        }
        return Err(e);
    }
    let Some((mut file, path)) = file else { return Ok(crate::cli::say(&content)) };
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(AuditError::file(path))?;
    Ok(crate::cli::say(&format!("written: {}\n", text::safe(&path.display().to_string()))))
}

/// The record, before it is formatted.
pub(super) struct Document {
    at: String,
    sections: Vec<Section>,
    missing: Vec<&'static str>,
}

struct Section {
    /// Its key in JSON.
    key: &'static str,
    title: &'static str,
    /// The article of the law that requires it.
    article: &'static str,
    body: Body,
}

enum Body {
    List(Vec<String>),
    Table(Vec<&'static str>, Vec<Vec<String>>),
}

/// The content of a class's entries.
const fn meaning(class: Class) -> &'static str {
    match class {
        Class::Security => "rejections, bans, circuit breakers, forged signatures",
        Class::Authentication => "successful and failed sign-ins",
        Class::Data => "reading and changing of data",
        Class::Administration => "actions of operators",
        Class::Deletion => "deletions, consent, and requests of data subjects",
    }
}

/// Collects the sections of the record.
///
/// # Errors
/// The configuration has no audit log.
pub(super) fn document(config: &Config, at: &str) -> Result<Document, AuditError> {
    let rules = config.audit.as_ref().ok_or_else(|| {
        AuditError::Refused("the configuration has no audit log: set audit.directory in it".to_owned())
    })?;
    let record = &rules.record;
    let mut missing = Vec::new();
    let mut said = |what: &'static str, text: &[String]| -> Vec<String> {
        let said: Vec<String> = text.iter().filter(|text| !text.trim().is_empty()).cloned().collect();
        if said.is_empty() {
            missing.push(what);
        }
        said
    };
    let controller = said("audit.record.controller", std::slice::from_ref(&record.controller));
    let contact = said("audit.record.contact", std::slice::from_ref(&record.contact));
    let purposes = said("audit.record.purposes", &record.purposes);
    let basis = said("audit.record.legal_basis", std::slice::from_ref(&record.legal_basis));
    let subjects = said("audit.record.subjects", &record.subjects);
    let recipients = said("audit.record.recipients", &record.recipients);
    let optional = |text: &str, name: &str| (!text.trim().is_empty()).then(|| format!("{name}: {text}"));

    let mut who: Vec<String> = controller.into_iter().map(|text| format!("controller: {text}")).collect();
    who.extend(contact.into_iter().map(|text| format!("contact: {text}")));
    who.extend(optional(&record.representative, "representative"));
    who.extend(optional(&record.dpo, "data-protection officer"));
    let mut why = purposes;
    why.extend(basis.into_iter().map(|text| format!("legal basis: {text}")));
    let transfers = match record.transfers.as_slice() {
        [] => vec!["none in the configuration".to_owned()],
        some => some.to_vec(),
    };
    let mut all_recipients = recipients;
    if let Some(database) = &rules.database {
        all_recipients.push(format!("PostgreSQL at {database}, to which entries are sent"));
    }

    let sections = vec![
        Section { key: "controller", title: "Controller", article: "Art. 30(1)(a)", body: Body::List(who) },
        Section { key: "purposes", title: "Purposes", article: "Art. 30(1)(b)", body: Body::List(why) },
        Section { key: "subjects", title: "Data subjects", article: "Art. 30(1)(c)", body: Body::List(subjects) },
        Section {
            key: "data",
            title: "Categories of data",
            article: "Art. 30(1)(c)",
            body: Body::List(data(config, rules)),
        },
        Section {
            key: "routes",
            title: "Recorded requests",
            article: "Art. 30(1)(c)",
            body: Body::Table(vec!["route", "as", "parameters"], routes(config)),
        },
        Section { key: "recipients", title: "Recipients", article: "Art. 30(1)(d)", body: Body::List(all_recipients) },
        Section {
            key: "transfers",
            title: "Transfers to third countries",
            article: "Art. 30(1)(e)",
            body: Body::List(transfers),
        },
        Section {
            key: "retention",
            title: "Retention",
            article: "Art. 30(1)(f)",
            body: Body::Table(
                vec!["class", "what", "kept", "on disk"],
                Class::ALL.map(|class| kept(rules, class)).to_vec(),
            ),
        },
        Section {
            key: "measures",
            title: "Measures",
            article: "Art. 30(1)(g), Art. 32(1)",
            body: Body::List(measures(config, rules)),
        },
    ];
    Ok(Document { at: at.to_owned(), sections, missing })
}

/// A row of the table of classes.
fn kept(rules: &AuditRules, class: Class) -> Vec<String> {
    let durability = match rules.durability[class as usize] {
        Durability::Group => format!("within {}", Span(rules.commit_interval)),
        Durability::BeforeResponse => "before the client gets its response".to_owned(),
    };
    vec![
        class.name().to_owned(),
        meaning(class).to_owned(),
        Span(rules.retention[class as usize]).to_string(),
        durability,
    ]
}

/// The table of routes whose requests are recorded.
fn routes(config: &Config) -> Vec<Vec<String>> {
    let routes = config.routes.all().iter();
    let row = routes.filter_map(|route| {
        let declared = match route.audit {
            Declared::Off => return None,
            Declared::Class(class) => class.name().to_owned(),
            Declared::Type(event) => format!("{} ({})", event.name(), event.class().name()),
        };
        let parameters: Vec<&str> = route.resource.iter().map(|(_, name)| &**name).collect();
        Some(vec![route.name.to_string(), declared, parameters.join(", ")])
    });
    row.collect()
}

fn data(config: &Config, rules: &AuditRules) -> Vec<String> {
    let mut data = vec![
        "time, Machine, route, method, outcome, status and duration of the request, its id and its trace id".to_owned(),
        "the client's address: as a pseudonym, and encrypted with the subject's key".to_owned(),
    ];
    if !config.credentials.is_empty() {
        data.push(
            "the verified user or API key: as a pseudonym, and encrypted with the subject's key; and its tier"
                .to_owned(),
        );
    }
    let list = |names: Vec<&str>| names.join(", ");
    if !rules.headers.is_empty() {
        let names = rules.headers.iter().map(http::HeaderName::as_str).collect();
        data.push(format!("the request headers {}, unencrypted", list(names)));
    }
    if !rules.parameters.is_empty() {
        data.push(format!(
            "the path parameters {}, unencrypted",
            list(rules.parameters.iter().map(String::as_str).collect())
        ));
    }
    data.push("never: query strings, bodies, credentials, other headers".to_owned());
    data
}

fn measures(config: &Config, rules: &AuditRules) -> Vec<String> {
    let mut measures = vec![
        "pseudonyms: HMAC-SHA-256 with a secret key; with that key, the entries of any known or guessed name can be found"
            .to_owned(),
        "names and addresses are encrypted (AES-256-GCM) with a key for each subject, which is itself encrypted with a master key"
            .to_owned(),
        "erasure destroys the subject's key, in the spool and in the database, and on other Machines when they next ship entries; names in copies of entries become unreadable as well, except with copies of the keys (backups of the database) until these expire; unencrypted values stay"
            .to_owned(),
        "each entry contains the hash of the previous one (SHA-256), the ends are signed (Ed25519): `outrigger audit verify` detects changes, additions and removals made without the key up to the last signature; a rollback of the whole directory is detected only with PostgreSQL or a receipt"
            .to_owned(),
        "reading, exporting, erasing and holding by `outrigger audit` are themselves recorded; reading the files or the database directly is not"
            .to_owned(),
        "only their owner can read the files".to_owned(),
        "expired entries are deleted automatically, once a day and from the beginning of each chain, and the deletion is recorded; legal holds suspend it"
            .to_owned(),
    ];
    measures.push(match &rules.keys {
        Some(_) => "the master keys come from the environment, separate from the audit log".to_owned(),
        None => "the master key is in the same directory as the audit log: with access to the directory, its names can be decrypted (set OUTRIGGER_AUDIT_KEYS)".to_owned(),
    });
    let flag = config.flag(Feature::AuditTrail);
    let mut switched = format!("the flag {} is {}", Feature::AuditTrail.key(), flag.switch);
    if !flag.users.is_empty() || !flag.networks.is_empty() {
        let _ =
            write!(switched, ", with exceptions for {} users and {} networks", flag.users.len(), flag.networks.len());
    }
    measures.push(switched);
    measures.extend(rules.record.measures.iter().cloned());
    measures
}

fn markdown(document: &Document) -> String {
    // Text from the configuration is escaped, so that it cannot create links or elements.
    let plain = |text: &str| {
        let mut out = String::new();
        for c in text::safe(text).chars() {
            if matches!(c, '<' | '>' | '[' | ']' | '|' | '*' | '_' | '\\' | '#') {
                out.push('\\');
            }
            out.push(c);
        }
        out
    };
    let mut out = format!(
        "# Record of processing: audit log\n\nGDPR, Art. 30(1). From the configuration in force at {}.\n",
        document.at
    );
    for section in &document.sections {
        // Writing to a string cannot fail.
        let _ = write!(out, "\n## {} ({})\n\n", section.title, section.article);
        match &section.body {
            Body::List(items) if items.is_empty() => out.push_str("- not configured\n"),
            Body::List(items) => items.iter().for_each(|item| {
                let _ = writeln!(out, "- {}", plain(item));
            }),
            Body::Table(_, rows) if rows.is_empty() => out.push_str("- none\n"),
            Body::Table(header, rows) => {
                let _ = writeln!(out, "| {} |\n|{}", header.join(" | "), "---|".repeat(header.len()));
                for row in rows {
                    let cells: Vec<String> = row.iter().map(|cell| plain(cell)).collect();
                    let _ = writeln!(out, "| {} |", cells.join(" | "));
                }
            }
        }
    }
    if !document.missing.is_empty() {
        out.push_str("\n## Missing\n\nRequired by law, but not configured:\n\n");
        for key in &document.missing {
            let _ = writeln!(out, "- `{key}`");
        }
    }
    out
}

fn html(document: &Document) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Record of processing: audit log</title>\n\
         <style>body{{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}}\
         table{{border-collapse:collapse}}th,td{{border:1px solid #999;padding:.3em .6em;text-align:left}}</style>\n\
         <h1>Record of processing: audit log</h1>\n<p>GDPR, Art. 30(1). From the configuration in force at {}.</p>\n",
        text::html(&document.at)
    );
    for section in &document.sections {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "<h2>{} ({})</h2>", text::html(section.title), text::html(section.article));
        match &section.body {
            Body::List(items) if items.is_empty() => out.push_str("<p>not configured</p>\n"),
            Body::Table(_, rows) if rows.is_empty() => out.push_str("<p>none</p>\n"),
            Body::List(items) => {
                let items: String = items.iter().map(|item| format!("<li>{}</li>\n", text::html(item))).collect();
                let _ = writeln!(out, "<ul>\n{items}</ul>");
            }
            Body::Table(header, rows) => {
                let cells = |row: &[String], tag: &str| -> String {
                    row.iter().map(|cell| format!("<{tag}>{}</{tag}>", text::html(cell))).collect()
                };
                let header: Vec<String> = header.iter().map(|&name| name.to_owned()).collect();
                let _ = writeln!(out, "<table>\n<tr>{}</tr>", cells(&header, "th"));
                for row in rows {
                    let _ = writeln!(out, "<tr>{}</tr>", cells(row, "td"));
                }
                out.push_str("</table>\n");
            }
        }
    }
    if !document.missing.is_empty() {
        let items: String =
            document.missing.iter().map(|key| format!("<li><code>{}</code></li>\n", text::html(key))).collect();
        let _ = writeln!(out, "<h2>Missing</h2>\n<p>Required by law, but not configured:</p>\n<ul>\n{items}</ul>");
    }
    out.push_str("</html>\n");
    out
}

fn as_json(document: &Document) -> String {
    let mut all = Map::new();
    all.insert("at".to_owned(), document.at.as_str().into());
    for section in &document.sections {
        let body = match &section.body {
            Body::List(items) => json!(items),
            Body::Table(header, rows) => {
                let object = |row: &Vec<String>| -> Value {
                    header
                        .iter()
                        .zip(row)
                        .map(|(name, cell)| ((*name).to_owned(), Value::from(cell.as_str())))
                        .collect::<Map<_, _>>()
                        .into()
                };
                Value::Array(rows.iter().map(object).collect())
            }
        };
        all.insert(section.key.to_owned(), body);
    }
    all.insert("missing".to_owned(), json!(document.missing));
    // The values were created here: serializing them cannot fail.
    text::safe_lines(&serde_json::to_string_pretty(&Value::Object(all)).unwrap_or_default()) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(source: &str) -> Config {
        let environment = |name: &str| (name == "OUTRIGGER_AUDIT_DIRECTORY").then(|| "/trail".to_owned());
        Config::parse(std::path::Path::new("proxy.toml"), source, &environment).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn the_record_lists_the_processing_and_what_the_configuration_lacks() {
        let config = load(
            r#"
            [audit]
            default = "off"
            headers = ["User-Agent"]
            parameters = ["id"]
            [audit.record]
            controller = "Example <b>Ltd</b>, 1 Road"
            contact = "privacy@example.com"
            purposes = ["to find out who did what | when"]
            [audit.durability]
            deletion = "before-response"
            [[routes]]
            name = "documents"
            path = "/documents/{id}"
            audit = "data"
            [[routes]]
            name = "sign-out"
            path = "/sign-out"
            audit = "auth.logout"
            "#,
        );
        let document = document(&config, "2026-11-24T14:00:00.000000Z").unwrap();
        insta::assert_snapshot!("markdown", markdown(&document));
        insta::assert_snapshot!("html", html(&document));
        insta::assert_snapshot!("json", as_json(&document));
    }
}
