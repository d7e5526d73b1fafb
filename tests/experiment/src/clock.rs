//! Compresses an hour into four minutes: every duration is divided by the same number, those of the edge, the app, the clients
//! and the proxies' rules as well, so their proportions stay the same.

use std::time::Duration;

use toml::Value;

/// Seconds of the hour in one second of the run.
pub const FACTOR: u32 = 15;

/// The proxies' rules, in real time.
const RULES: &str = include_str!("../proxy.toml");
/// The shortest duration in the rules: the computer itself can pause for as long.
const SHORTEST: Duration = Duration::from_millis(20);

/// Converts seconds of the hour to the run.
pub fn seconds(real: f64) -> Duration {
    Duration::from_secs_f64(real / f64::from(FACTOR))
}

/// The rules of the experiment's proxies: every duration and the period of every rate divided.
pub fn rules() -> String {
    compressed(RULES)
}

fn compressed(rules: &str) -> String {
    let mut value: Value = toml::from_str(rules).expect("proxy.toml is TOML: a test reads it");
    walk(&mut value);
    toml::to_string(&value).expect("what was read can be written")
}

fn walk(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some(shorter) = shorter(text) {
                *text = shorter;
            }
        }
        Value::Array(all) => all.iter_mut().for_each(walk),
        Value::Table(table) => table.iter_mut().for_each(|(_, value)| walk(value)),
        _ => {}
    }
}

/// `"5s"` or `"100/1m"`, divided; `None` for other text.
fn shorter(text: &str) -> Option<String> {
    if let Some((count, period)) = text.split_once('/') {
        let (count, period) = (count.parse::<u32>().ok()?, duration(period)?.as_secs());
        // Rates have periods of whole seconds: a period that cannot be divided stays, with a higher count.
        let is_whole = period % u64::from(FACTOR) == 0;
        return Some(match period / u64::from(FACTOR) {
            shorter if is_whole => format!("{count}/{shorter}s"),
            _ => format!("{}/{period}s", count * FACTOR),
        });
    }
    let duration = duration(text)?;
    Some(milliseconds((duration / FACTOR).max(SHORTEST.min(duration))))
}

/// A PromQL query with each window divided: `[5m:15s]` becomes `[20s:1s]`. Text in quotes stays.
pub fn query(query: &str) -> String {
    let mut parts = query.split('"');
    let mut divided = parts.next().map(windows).unwrap_or_default();
    for (number, part) in parts.enumerate() {
        divided.push('"');
        divided.push_str(&if number % 2 == 0 { part.to_owned() } else { windows(part) });
    }
    divided
}

fn windows(query: &str) -> String {
    let mut text = String::with_capacity(query.len());
    let mut rest = query;
    while let Some((before, window, after)) = rest
        .split_once('[')
        .and_then(|(before, rest)| rest.split_once(']').map(|(window, after)| (before, window, after)))
    {
        let part = |part: &str| divided(part).map_or_else(|| part.to_owned(), whole_seconds);
        let parts: Vec<String> = window.split(':').map(part).collect();
        text.push_str(&format!("{before}[{}]", parts.join(":")));
        rest = after;
    }
    text + rest
}

/// A duration such as `"15s"`, divided. `None` for other text.
pub fn divided(text: &str) -> Option<Duration> {
    Some(duration(text)? / FACTOR)
}

fn duration(text: &str) -> Option<Duration> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    units.iter().find_map(|(unit, ms)| Some(Duration::from_millis(text.strip_suffix(unit)?.parse::<u64>().ok()? * ms)))
}

/// `"20s"`, or milliseconds if they are not whole seconds.
fn whole_seconds(duration: Duration) -> String {
    if duration.subsec_nanos() == 0 { format!("{}s", duration.as_secs()) } else { milliseconds(duration) }
}

fn milliseconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_of_the_rules_is_divided_and_nothing_else_is() {
        let rules = "a.timeout = \"15s\"\na.rate = \"100/1m\"\na.path = \"/x/15s\"\na.share = \"20%\"\na.tiny = \"10ms\"\na.often = \"5/1s\"\n\
                     a.short = \"90ms\"\na.max = 7\n[[b]]\nidle = \"1h\"\n";
        let now: Value = toml::from_str(&compressed(rules)).unwrap();
        let a = |key: &str| now["a"][key].as_str().unwrap().to_owned();
        assert_eq!((a("timeout"), a("rate"), a("path")), ("1000ms".into(), "100/4s".into(), "/x/15s".into()));
        assert_eq!((a("share"), a("tiny"), a("short")), ("20%".into(), "10ms".into(), "20ms".into()));
        assert_eq!(a("often"), "75/1s");
        assert_eq!(now["a"]["max"].as_integer(), Some(7));
        assert_eq!(now["b"][0]["idle"].as_str(), Some("240000ms"));
    }

    #[test]
    fn every_window_of_a_query_is_divided_and_nothing_else_is() {
        let original = "min_over_time((rate(cpu{app=\"a[1m]\",mode!~\"x|y\"}[2m]) > bool 1)[5m:15s]) or vector(10)";
        let expected = "min_over_time((rate(cpu{app=\"a[1m]\",mode!~\"x|y\"}[8s]) > bool 1)[20s:1s]) or vector(10)";
        assert_eq!(query(original), expected);
    }

    #[test]
    fn the_rules_are_read() {
        assert!(rules().contains("[[routes]]"));
    }
}
