use std::path::Path;

use proptest::prelude::*;

use crate::config::Config;

/// Files with a mistake, or with a warning, that one or more values are part of.
const FILES: &[&str] = &[
    "[app]\ntimeout = \"${X}\"\n",
    "[app]\naddress = \"${X}\"\nmetrics = \"http://127.0.0.1:9091/metrics\"\n",
    "[app]\nmetrics = \"${X}\"\n",
    "[server]\nlisten = \"${X}\"\nthreads = \"${X}\"\nmachine = \"${X}\"\nallow = [\"${X}\"]\n",
    "[client]\nmax_head = \"${X}\"\nmax_fields = \"${X}\"\nmax_body = \"${X}\"\n",
    "[log]\nlevel = \"${X}\"\nformat = \"${X}\"\n",
    "[headers]\nrequest_id = \"${X}\"\n",
    "[flags]\naudit_trail = \"${X}\"\n[admin]\nhosts = [\"${X}\"]\n",
    "[identity]\ntrusted = [\"${X}\"]\nkey_field = \"${X}\"\nedge = \"${X}\"\nkeys_file = \"${X}\"\n",
    "[[identity.keys]]\nname = \"${X}\"\nsha256 = \"${X}\"\ntier = \"${X}\"\n",
    "[identity.jwt]\nsecret_file = \"${X}\"\njwks_url = \"${X}\"\n",
    "[rate_limits]\nshared = \"redis\"\nhigh = \"${X}\"\n[rate_limits.redis]\nurl = \"${X}\"\nprefix = \"${X}\"\nca_file = \"${X}\"\n",
    "[[rate_limits.rules]]\nname = \"${X}\"\nrate = \"5/1m\"\nroutes = [\"${X}\", \"a ${X}\"]\nby = \"${X}\"\n",
    "[[rate_limits.rules]]\nname = \"x\"\nrate = \"${X}\"\n",
    "[audit]\ndirectory = \"/trail\"\ndatabase = \"${X}\"\ndefault = \"${X}\"\nheaders = [\"${X}\"]\n",
    "[traces]\nendpoint = \"${X}\"\n[health]\npath = \"${X}\"\n",
    "[[breaker.groups]]\nname = \"${X}\"\nwindow = \"${X}\"\n",
    "[[routes]]\nname = \"${X}\"\npath = \"${X}\"\nmethods = [\"${X}\"]\nhosts = [\"${X}\"]\nbreaker = \"${X}\"\nlimit = 5\n",
    "[[routes]]\nname = \"a\"\npath = \"/${X}\"\n[[routes]]\nname = \"b\"\npath = \"/${X}\"\naudit = \"${X}\"\n",
    "[[routes]]\nname = \"a\"\npath = \"/a\"\nheaders = { \"${X}\" = \"${X}\", \"x y\" = \"${X}\" }\nallow = [\"${X}\"]\n",
    "[[routes]]\nname = \"a\"\npath = \"/a\"\nfallback = { body = \"${X}\", content_type = \"${X}\", status = \"${X}\" }\n",
    "[[faults]]\nroutes = [\"${X}\"]\nheaders = { x = \"${X}\" }\n[peers]\nlist = [\"${X}\"]\ndns = \"${X}\"\n",
    "[server]\nmax_connections = \"${X}\"\n[unknown]\nkey = \"${X}\"\n[admission]\nmax_queue = \"${X}\"\n",
    "[pages]\ntemplate = \"${X}\"\ncontact = \"${X}\"\n[maintenance]\nallow = [\"${X}\"]\n[run]\nport = \"${X}\"\n",
];

fn told(file: &str, value: &str) -> Vec<String> {
    let lookup = |name: &str| (name == "X").then(|| value.to_owned());
    let findings = match Config::parse(Path::new("proxy.toml"), file, &lookup) {
        Ok(config) => config.warnings,
        Err(e) => e.findings(),
    };
    findings.into_iter().flat_map(|finding| [finding.message, finding.hint, finding.text]).collect()
}

fn is_told(told: &[String], value: &str) -> bool {
    let forms = [value.to_owned(), format!("{value:?}").trim_matches('"').to_owned(), value.to_lowercase()];
    told.iter().any(|text| forms.iter().any(|form| text.contains(form) || text.to_lowercase().contains(form)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_value_of_a_reference_is_ever_told(
        file in 0..FILES.len(),
        // A digit and a letter that no word of a message has next to each other.
        value in "[ -~é]{0,12}[qxz][0-9][qxz][0-9][ -~]{0,12}|[1-9][0-9]{5,9}(s|/1m|MiB|x)?|/[qxz]{4}[a-z]{0,6}|[qxz]{4}[.][qxz]{4}:[0-9]{4}",
    ) {
        let told = told(FILES[file], &value);
        prop_assert!(!is_told(&told, &value), "{:?} in {:#?}", value, told);
    }
}

#[test]
fn values_that_fit_are_not_told_in_other_messages() {
    for (file, value) in [
        // It is valid, and the error is that of two keys together.
        ("[server]\nlisten = \"${X}\"\n[admin]\nlisten = \"0.0.0.0:7777\"\n", "127.0.0.7:7777"),
        ("[app]\naddress = \"${X}\"\n[server]\nlisten = \"0.0.0.0:7777\"\n", "127.0.0.7:7777"),
        ("[[routes]]\nname = \"${X}\"\n[[routes]]\nname = \"b\"\npath = \"/b\"\n", "correct-horse"),
        ("[[routes]]\nname = \"${X}\"\nlimit = 5\n", "correct-horse"),
        ("[[routes]]\nname = \"a\"\npath = \"/a\"\nbreaker = \"${X}\"\n", "correct-horse"),
        ("[[breaker.groups]]\nname = \"${X}\"\n", "correct-horse"),
        ("[abuse]\nban = \"${X}\"\nmax_ban = \"1m\"\n", "7777m"),
        ("[[routes]]\nname = \"${X}\"\npath = \"/a\"\n", "Correct Horse"),
        ("[[identity.keys]]\nname = \"a\"\nsha256 = \"${X}\"\n", "correct-horse"),
        ("[audit]\ndirectory = \"/trail\"\ndatabase = \"${X}\"\n", "postgres://u:correct-horse@h:port/d"),
    ] {
        let told = told(file, value);
        // Some of these are warnings or valid only in this build.
        assert!(!is_told(&told, value) && !told.concat().to_lowercase().contains("horse"), "{file}: {told:#?}");
    }
}

#[test]
fn public_words_stay() {
    let file = "[log]\nlevel = \"${X}\"\nformat = \"xml\"\n[server]\nlisten = \"1\"\n";
    let told = told(file, "0.0.0.0:80x0").join("\n");
    assert!(told.contains("write \"0.0.0.0:8080\" or \"[::]:8080\"") && told.contains("got \"xml\""), "{told}");
    assert!(told.contains("`level` needs one of error, warn, info, debug"), "{told}");
}
