//! The document: setup, results, which claims hold, and the limits of the experiment.

use std::fmt::Write as _;
use std::time::Duration;

use crate::clock::FACTOR;
use crate::load::{End, Outcome};
use crate::numbers::{self, Claims, Tally, floods, goodput, of_kind, well_behaved};
use crate::script::{DEADLINE, Fault, Flood, Kind, OVERLOAD, QUEUE, Script, WORKERS, capacity, clock, times};
use crate::side::{Busy, Form, Side};

/// One line about a side, for the terminal.
pub fn summary(side: &Side) -> String {
    let tally = Tally::of(well_behaved(&side.outcomes));
    let good = side.overload.iter().filter(|outcome| outcome.is_good()).count();
    format!(
        "{}: {} of {} well-behaved requests failed ({}), p99 {}; {good} of {} good responses under overload; CPU {}, ours {}",
        side.form.words(),
        tally.bad(),
        tally.requests,
        percent(tally.availability()),
        ms(tally.percentile(99.0)),
        side.overload.len(),
        cpu(&side.busy, |busy| busy.all),
        cpu(&side.busy, |busy| busy.ours),
    )
}

/// Every failed request of a well-behaved client, one per line.
pub fn failures(side: &Side, script: &Script) -> String {
    let mut text = "time\tms\tfault\tkind\tclient\tend\trequest id\twords\n".to_owned();
    let mut failed: Vec<&Outcome> = well_behaved(&side.outcomes).filter(|outcome| !outcome.is_good()).collect();
    failed.sort_by_key(|outcome| outcome.arrival.at);
    for Outcome { arrival, latency, end, request_id, words } in failed {
        let _ = writeln!(
            text,
            "{}\t{}\t{}\t{}\t{}\t{}\t{request_id}\t{words}",
            clock(arrival.at),
            latency.as_millis(),
            script.during(arrival.at, arrival.at + *latency),
            arrival.kind.name(),
            arrival.client,
            how(end)
        );
    }
    text
}

fn how(end: &End) -> String {
    match end {
        End::Good => "good".to_owned(),
        End::Answered(status, by) => format!("{status} by {by}"),
        End::Late => "no response within the client's timeout".to_owned(),
        End::Broken => "connection broke".to_owned(),
    }
}

/// The whole document.
pub fn document(sides: &[Side], script: &Script, seed: u64) -> String {
    let mut text = String::new();
    text.push_str(
        "# The availability experiment\n\n\
         <!-- Written by `cargo xtask experiment`; edits by hand are lost. -->\n\n\
         An hour of faults in compressed time, with the same faults and the same requests for each side: one bare \
         app, three bare apps, and three apps with Outrigger in front of each. A good response is a 200 within the \
         client's timeout; availability is the share of requests of well-behaved clients that get one. Compared with \
         one bare app, three with Outrigger should have an availability of at least 99.99 %, a p99 at least 30 % \
         lower, and at least twice the throughput.\n\n",
    );
    claims(&mut text, sides, script);
    table(&mut text, sides, script);
    causes(&mut text, sides, script);
    text.push_str(
        "## Over time\n\n\
         ![failed requests](experiment/errors.png)\n\n\
         ![p99](experiment/latency.png)\n\n\
         ![good responses](experiment/goodput.png)\n\n\
         ![overload](experiment/overload.png)\n\n",
    );
    what_was_run(&mut text, script, seed);
    remarks(&mut text, sides);
    wrapped(&text)
}

/// Paragraphs wrapped at the width of the other documents; tables, pictures and headings stay.
fn wrapped(text: &str) -> String {
    const WIDTH: usize = 140;
    let mut all = String::new();
    for line in text.lines() {
        if line.starts_with(['|', '!', '#', '<']) {
            let _ = writeln!(all, "{line}");
            continue;
        }
        let indent = if line.starts_with("- ") { "  " } else { "" };
        let mut width = 0;
        for word in line.split(' ') {
            let length = word.chars().count();
            if width > 0 && width + 1 + length > WIDTH {
                let _ = write!(all, "\n{indent}{word}");
                width = indent.len() + length;
            } else {
                let _ = write!(all, "{}{word}", if width > 0 { " " } else { "" });
                width += length + usize::from(width > 0);
            }
        }
        all.push('\n');
    }
    all
}

fn find(sides: &[Side], form: Form) -> Option<&Side> {
    sides.iter().find(|side| side.form == form)
}

fn claims(text: &mut String, sides: &[Side], script: &Script) {
    let Some(ours) = find(sides, Form::Outrigger) else { return };
    text.push_str("## The claims\n\n");
    let holds = |is_so: bool| if is_so { "holds" } else { "**does not hold**" };
    for form in [Form::One, Form::Three] {
        let Some(theirs) = find(sides, form) else { continue };
        let (our_good, their_good) = (goodput(&ours.overload, script), goodput(&theirs.overload, script));
        let claims = Claims::of(&ours.outcomes, &theirs.outcomes, our_good, their_good);
        let against = Tally::of(well_behaved(&theirs.outcomes)).availability();
        let _ = write!(
            text,
            "| three with Outrigger compared with {} | | |\n|---|---|---|\n\
             | availability | {} instead of {} | at least 99.99 %: {} |\n\
             | p99 of good responses | {} | at least 30 % lower: {} |\n\
             | good responses under overload | {:.2} times | at least twice: {} |\n\n",
            form.words(),
            percent(claims.availability),
            percent(against),
            holds(claims.is_available()),
            change(claims.p99),
            holds(claims.is_faster()),
            claims.goodput,
            holds(claims.does_more()),
        );
    }
    text.push_str(
        "The claims are about the first comparison. The second one shows how much of the effect is due to Outrigger, \
         and how much to three Machines.\n\n",
    );
}

fn table(text: &mut String, sides: &[Side], script: &Script) {
    text.push_str("## The figures\n\n");
    row(text, "", sides, |side| side.form.words().to_owned());
    row(text, "---", sides, |_| "---".to_owned());
    let good = |side: &Side| Tally::of(well_behaved(&side.outcomes));
    let flood = |side: &Side| Tally::of(floods(&side.outcomes));
    row(text, "requests of well-behaved clients", sides, |side| good(side).requests.to_string());
    row(text, "availability", sides, |side| percent(good(side).availability()));
    row(text, "failed", sides, |side| good(side).bad().to_string());
    for kind in Kind::ALL {
        row(text, &format!("failed: {}", kind.name()), sides, |side| {
            let tally = of_kind(&side.outcomes, kind);
            format!("{} of {}", tally.bad(), tally.requests)
        });
    }
    for rank in [50.0, 95.0, 99.0] {
        row(text, &format!("p{rank:.0} of good responses"), sides, |side| ms(good(side).percentile(rank)));
    }
    row(text, "p99 of checkouts", sides, |side| ms(of_kind(&side.outcomes, Kind::Checkout).percentile(99.0)));
    row(text, "good responses a second under overload", sides, |side| {
        format!("{:.0}", goodput(&side.overload, script))
    });
    row(text, "the same as work, relative to the apps' capacity", sides, |side| {
        format!("{:.0} %", 100.0 * numbers::work_done(&side.overload, script, side.form.machines()))
    });
    row(text, "availability of checkouts under overload", sides, |side| {
        percent(checkouts(&side.overload, script).availability())
    });
    row(text, "requests of floods", sides, |side| flood(side).requests.to_string());
    row(text, "of these with a good response", sides, |side| percent(flood(side).availability()));
    row(text, "CPU of the experiment, mean and maximum", sides, |side| cpu(&side.busy, |busy| busy.ours));
    row(text, "the same under overload", sides, |side| cpu(&side.busy_overload, |busy| busy.ours));
    row(text, "CPU of the whole computer", sides, |side| cpu(&side.busy, |busy| busy.all));
    row(text, "the same under overload", sides, |side| cpu(&side.busy_overload, |busy| busy.all));
    text.push('\n');
}

fn checkouts(overload: &[Outcome], script: &Script) -> Tally {
    let counts = |outcome: &&Outcome| outcome.arrival.at >= script.warm_up && outcome.arrival.kind == Kind::Checkout;
    Tally::of(overload.iter().filter(counts))
}

fn causes(text: &mut String, sides: &[Side], script: &Script) {
    text.push_str(
        "Failed requests of well-behaved clients, by the fault at the time (or up to half a minute before):\n\n",
    );
    row(text, "", sides, |side| side.form.words().to_owned());
    row(text, "---", sides, |_| "---".to_owned());
    let mut names: Vec<&str> = vec!["calm"];
    for line in &script.lines {
        if !names.contains(&line.fault.name()) {
            names.push(line.fault.name());
        }
    }
    for name in names {
        row(text, name, sides, |side| {
            numbers::by_fault(&side.outcomes, script).get(name).copied().unwrap_or_default().to_string()
        });
    }
    text.push_str("\nAnd by how they ended:\n\n");
    row(text, "", sides, |side| side.form.words().to_owned());
    row(text, "---", sides, |_| "---".to_owned());
    let tallies: Vec<Tally> = sides.iter().map(|side| Tally::of(well_behaved(&side.outcomes))).collect();
    let mut ends: Vec<&End> = tallies.iter().flat_map(|tally| tally.failed.keys()).collect();
    ends.sort_unstable();
    ends.dedup();
    for end in ends {
        row(text, &how(end), sides, |side| {
            Tally::of(well_behaved(&side.outcomes)).failed.get(end).copied().unwrap_or_default().to_string()
        });
    }
    text.push('\n');
}

fn row(text: &mut String, name: &str, sides: &[Side], cell: impl Fn(&Side) -> String) {
    let cells: Vec<String> = sides.iter().map(cell).collect();
    let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
}

fn what_was_run(text: &mut String, script: &Script, seed: u64) {
    let all = script.arrivals(seed);
    let floods = all.iter().filter(|arrival| arrival.is_flood).count();
    let rate = (all.len() - floods) as f64 / script.length().as_secs_f64();
    let _ = write!(
        text,
        "## Setup\n\n\
         **Time.** {} minutes in {:.0} seconds: every duration is divided by {FACTOR}: the script, the edge's \
         settings, the app's start, the clients' timeout, and each duration and rate of the proxies' configuration \
         (`tests/experiment/proxy.toml`). Below, times are those of the hour; latencies are those of the run, in \
         which a read takes {} ms (a third of a second of the hour).\n\n\
         **The app.** A separate process, the same program on each side: {WORKERS} workers and a queue of {QUEUE}; \
         when the queue is full, it responds with 503 at once. A request sleeps for 0.5 to 1.5 times the mean of its \
         kind:{}. About half of that is the database. One app can serve {:.0} requests a second of the mix. It takes \
         {} s to start, and its supervisor {} s to notice that it ended.\n\n\
         **The edge.** The project's stand-in for Fly's edge (`tests/edge/`), configured as in `fly.toml`; routing \
         learns of state changes after 2 s. A request that a Machine had begun when it broke off is sent again if it \
         is idempotent: whether Fly does that is *not established*, so the last column is for an edge that never \
         does.\n\n\
         **The clients.** {:.0} requests a second from 200 addresses (60 % reads, 20 % writes, 10 % checkouts, 10 % \
         searches), at random times that are the same for each side. Each is sent when it is due, even if earlier \
         ones are not complete; its latency counts from then. Clients keep their cookie, wait for {DEADLINE} s, and \
         do not retry. Floods are counted separately:\n\n",
        script.minutes,
        script.length().as_secs_f64(),
        Kind::Read.work().0.as_millis(),
        each_kind(|kind| format!(" {} {} ms", kind.name(), kind.work().0.as_millis())),
        capacity(),
        times::APP_START,
        times::SUPERVISOR,
        rate,
    );
    let _ = write!(
        text,
        "- scrapers: 8 addresses send reads, {:.1} times the capacity of one app;\n\
         - a crowd: 200 addresses send searches, the most expensive and least important requests, {:.1} times the \
         capacity of one app, and ignore `Retry-After`.\n\n\
         **The script.**\n\n\
         | from | to | |\n\
         |---|---|---|\n",
        Flood::Scrapers.times_capacity(),
        Flood::Crowd.times_capacity(),
    );
    for line in &script.lines {
        let words = match line.fault {
            Fault::MachineKilled(_) => format!(
                "a Machine is killed with all its processes; {:.0} s later another host boots it, in {} s",
                times::REPLACEMENT,
                times::MACHINE_BOOT
            ),
            Fault::AppCrash(_) => "an app is killed; its supervisor restarts it".to_owned(),
            Fault::AppHang(_) => {
                format!(
                    "an app hangs; after {:.0} s a watchdog kills it, and its supervisor restarts it",
                    times::WATCHDOG
                )
            }
            Fault::SlowDatabase(factor) => format!("the database takes {factor} times as long"),
            Fault::Deploy(outrigger_edge::Strategy::Rolling) => "a rolling deploy, one Machine at a time".to_owned(),
            Fault::Deploy(outrigger_edge::Strategy::BlueGreen) => "a blue-green deploy".to_owned(),
            Fault::Burst(Flood::Scrapers) => "the scrapers send requests".to_owned(),
            Fault::Burst(Flood::Crowd) => "the crowd sends requests".to_owned(),
        };
        let _ = writeln!(text, "| {} | {} | {words} |", clock(line.begins()), clock(line.ends()));
    }
    let _ = write!(
        text,
        "\n**Overload.** After the hour, without faults: the mix of well-behaved clients at {OVERLOAD} times the \
         capacity of one app ({:.0} requests a second), from so many addresses that no rate limit applies, for {} s, \
         of which the first {} do not count.\n\n",
        OVERLOAD * capacity(),
        script.overload.as_secs(),
        script.warm_up.as_secs(),
    );
}

fn each_kind(words: impl Fn(Kind) -> String) -> String {
    Kind::ALL.map(words).join(",")
}

fn remarks(text: &mut String, sides: &[Side]) {
    text.push_str(
        "## Interpretation and limits\n\n\
         - **One bare app is a realistic baseline**: it is the setup before Outrigger. With one Machine, every kill \
         and every rolling deploy is an outage. The column of three bare apps shows the effect of Machines alone.\n\
         - **p99 covers good responses only.** An app that rejects requests at once has no slow responses: read p99 \
         together with availability.\n\
         - **A rejection counts as a failure**, even a 503 with `Retry-After` to a well-behaved client.\n\
         - **Failures with Outrigger** have three causes. A `POST` that is in flight when its Machine or app dies is \
         not sent again, because its effect is unknown. When an app hangs, its requests fail at their timeout and \
         are not retried elsewhere, until circuit breakers have opened or the app has missed two health checks; from \
         then on peers serve them. And a crowd cannot be distinguished from well-behaved clients: their searches are \
         rejected along with the crowd's, so that more important requests are served.\n\
         - **Bare Machines handle a hang better.** The edge sends requests to the Machine with the fewest, so it \
         soon avoids the one that hangs; sessions that Outrigger keeps on their Machine go there until the hang is \
         detected. A `GET` that times out is not retried at a peer.\n\
         - **Good responses are counted, not their work.** Under overload Outrigger rejects searches, which cost \
         four times as much as reads, so there are more responses than the apps' capacity for the whole mix; the \
         next row shows the share of the apps' time that went into good responses.\n\
         - **Some of Outrigger's times are fixed** and are not divided: a health check of the app times out after a \
         second, which is 15 s of the hour. A hang is therefore detected later than it would be.\n\
         - **An hour of faults is not a year.** It is far worse than a usual hour: compare the sides, and do not \
         read the figures as a service's availability.\n\
         - **Work is sleep**, so that the computer, which runs the load, the edge and all sides' processes, is not \
         the bottleneck; the CPU rows show how busy it was, including other programs.\n",
    );
    if let Some(busiest) = sides
        .iter()
        .flat_map(|side| side.busy.iter().chain(&side.busy_overload))
        .map(|busy| busy.all)
        .max_by(f64::total_cmp)
        && busiest > 0.9
    {
        let _ = writeln!(
            text,
            "- **The computer was {:.0} % busy in its worst second**: interpret the latencies of that time with care.",
            100.0 * busiest
        );
    }
    text.push_str(
        "\n## How to repeat it\n\n\
         `cargo xtask experiment` takes about a quarter of an hour, plus the build; use a computer that is otherwise \
         idle. `--quick` takes a few seconds a side, `--sides one,outrigger` selects sides, `--seed 2` changes the \
         random numbers. Every failed request of a well-behaved client is in `target/experiment/failures-SIDE.tsv`, \
         with its id, time and response; the logs of all processes are in the same directory.\n",
    );
}

fn percent(share: f64) -> String {
    // Rounded down, so that it never shows more than was reached.
    format!("{:.3} %", (share * 100_000.0).floor() / 1000.0)
}

fn change(ratio: f64) -> String {
    let percent = 100.0 * (ratio - 1.0);
    if percent < 0.0 { format!("{:.0} % lower", -percent) } else { format!("{percent:.0} % higher") }
}

fn ms(latency: Option<Duration>) -> String {
    latency.map_or("–".to_owned(), |latency| format!("{:.0} ms", latency.as_secs_f64() * 1000.0))
}

/// Mean and maximum.
fn cpu(busy: &[Busy], of: fn(&Busy) -> f64) -> String {
    let mean = busy.iter().map(of).sum::<f64>() / busy.len().max(1) as f64;
    let most = busy.iter().map(of).fold(0.0, f64::max);
    format!("{:.0} %, {:.0} %", 100.0 * mean, 100.0 * most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::tests::outcome;

    fn busy(all: f64) -> Busy {
        Busy { all, ours: all / 2.0 }
    }

    fn side(form: Form, failed: usize, ms: u64) -> Side {
        let mut outcomes: Vec<Outcome> = (0..10_000).map(|_| outcome(1.0, ms, End::Good)).collect();
        for outcome in outcomes.iter_mut().take(failed) {
            outcome.end = End::Answered(502, "the app");
        }
        let overload = (0..ms).map(|_| outcome(10.0, 5, End::Good)).collect();
        Side { form, outcomes, overload, busy: vec![busy(0.2), busy(0.4)], busy_overload: vec![busy(0.5)] }
    }

    #[test]
    fn the_document_says_which_claims_hold_and_which_do_not() {
        let script = Script::hour();
        let sides = [side(Form::One, 500, 100), side(Form::Outrigger, 2, 60)];
        let text = document(&sides, &script, 1);
        assert!(text.contains("| availability | 99.980 % instead of 95.000 % | at least 99.99 %: **does not hold** |"));
        assert!(text.contains("| p99 of good responses | 40 % lower | at least 30 % lower: holds |"));
        assert!(text.contains("0.60 times | at least twice: **does not hold** |"));
        assert!(text.contains("| failed | 500 | 2 |"));
        assert!(text.contains("| 502 by the app | 500 | 2 |"));
        assert!(text.contains("| CPU of the experiment, mean and maximum | 15 %, 20 % | 15 %, 20 % |"));
        for line in &script.lines {
            assert!(text.contains(&format!("| {} | {} |", clock(line.begins()), clock(line.ends()))));
        }
        let is_text = |line: &&str| !line.starts_with(['|', '!', '#', '<']);
        assert!(text.lines().filter(is_text).all(|line| line.chars().count() <= 140));
    }

    #[test]
    fn percentages_are_not_rounded_up_to_a_claim() {
        assert_eq!(percent(0.999_899_99), "99.989 %");
        assert_eq!(percent(1.0), "100.000 %");
        assert_eq!((change(0.7), change(1.25)), ("30 % lower".to_owned(), "25 % higher".to_owned()));
    }

    #[test]
    fn each_failed_request_is_listed_with_its_fault() {
        let mut one = side(Form::One, 0, 10);
        one.outcomes.truncate(1);
        one.outcomes.push(Outcome { words: "PU02".to_owned(), ..outcome(12.2, 7, End::Answered(502, "the edge")) });
        let text = failures(&one, &Script::hour());
        assert_eq!(text.lines().nth(1), Some("03:03\t7\tMachine killed\tread\t1\t502 by the edge\t01ABC-ams\tPU02"));
        assert_eq!(text.lines().count(), 2);
    }
}
