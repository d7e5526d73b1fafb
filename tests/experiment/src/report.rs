//! The document: results, and which claims hold. `setup.rs` has the rest of it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use crate::autoscaler::Action;
use crate::load::Outcome;
use crate::numbers::{
    self, AVAILABILITY, Claims, Figures, GOODPUT, P99, Tally, floods, goodput, of_kind, well_behaved,
};
use crate::script::{Kind, OVERLOAD, Script, capacity, clock};
use crate::setup;
use crate::side::{Busy, Form, POOL, Scaling, Side};

/// One line about a side, for the terminal.
pub fn summary(side: &Side, script: &Script) -> String {
    let tally = Tally::of(well_behaved(&side.outcomes));
    format!(
        "{}, seed {}: {} of {} well-behaved requests failed ({}), p99 {}; {:.0} good responses a second under overload; CPU {}, \
         ours {}",
        side.form.words(),
        side.seed,
        tally.bad(),
        tally.requests,
        percent(tally.availability()),
        ms(tally.percentile(99.0)),
        goodput(&side.overload, script),
        cpu(&side.busy, |busy| busy.all),
        cpu(&side.busy, |busy| busy.ours),
    )
}

/// The whole document: `sides` with the first seed, `others` with further ones.
pub fn document(sides: &[Side], others: &[Side], script: &Script) -> String {
    let mut text = String::new();
    text.push_str(
        "# The availability experiment\n\n\
         <!-- Written by `cargo xtask experiment`; edits by hand are lost. -->\n\n\
         An hour of faults in compressed time, with the same faults and the same requests for each side: one bare \
         app, three bare apps, three apps with Outrigger in front of each, and as many of these as fly-autoscaler \
         chooses. A good response is a 200 within the client's timeout; availability is the share of requests of \
         well-behaved clients that get one. Compared with one bare app, three with Outrigger should have an \
         availability of at least 99.99 %, a p99 at least 30 % lower, and at least twice the throughput.\n\n",
    );
    claims(&mut text, sides, script);
    bounds(&mut text, sides, others, script);
    table(&mut text, sides, script);
    causes(&mut text, sides, script);
    text.push_str(
        "## Over time\n\n\
         ![failed requests](experiment/errors.png)\n\n\
         ![p99](experiment/latency.png)\n\n\
         ![good responses](experiment/goodput.png)\n\n\
         ![overload](experiment/overload.png)\n\n",
    );
    for side in sides {
        if let Some(scaling) = &side.scaling {
            autoscaling(&mut text, side, scaling, script);
        }
    }
    setup::what_was_run(&mut text, script, sides);
    setup::remarks(&mut text, sides, script);
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

/// The bounds with every seed.
fn bounds(text: &mut String, sides: &[Side], others: &[Side], script: &Script) {
    let all: Vec<(&Side, Figures)> = Form::ALL
        .into_iter()
        .filter(|form| form.has_proxy())
        .flat_map(|form| sides.iter().chain(others).filter(move |side| side.form == form))
        .map(|side| (side, Figures::of(&side.outcomes, &side.overload, script)))
        .collect();
    let ours: Vec<Figures> =
        all.iter().filter(|(side, _)| side.form == Form::Outrigger).map(|(_, figures)| *figures).collect();
    if ours.is_empty() {
        return;
    }
    let verdict = |holds: fn(&Figures) -> bool| match ours.iter().filter(|figures| holds(figures)).count() {
        count if count == ours.len() => "holds".to_owned(),
        count => format!("**does not hold**, only in {count} of {}", ours.len()),
    };
    let _ = write!(
        text,
        "Bounds for three with Outrigger, which should hold with each seed, that is with other requests at other times:\n\n\
         | with each of {} seeds | |\n|---|---|\n\
         | availability at least {:.2} % | {} |\n\
         | p99 of good responses at most {} ms | {} |\n\
         | good responses a second under overload at least {GOODPUT:.0} | {} |\n\n\
         | | seed | availability | failed | p99 | good responses a second under overload |\n|---|---|---|---|---|---|\n",
        ours.len(),
        100.0 * AVAILABILITY,
        verdict(Figures::is_available),
        P99.as_millis(),
        verdict(Figures::is_fast),
        verdict(Figures::does_enough),
    );
    for (side, figures) in &all {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {:.0} |",
            side.form.words(),
            side.seed,
            percent(figures.availability),
            figures.failed,
            figures.p99.map_or("–".to_owned(), |p99| format!("{:.1} ms", p99.as_secs_f64() * 1000.0)),
            figures.goodput.floor(),
        );
    }
    text.push('\n');
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
        format!("{:.0} %", 100.0 * numbers::work_done(&side.overload, script, side.machines_at_overload))
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
    let counts: Vec<_> = sides.iter().map(|side| numbers::by_end(&side.outcomes)).collect();
    let ends: BTreeSet<&String> = counts.iter().flat_map(|counts| counts.keys()).collect();
    for end in ends {
        let cells: Vec<String> =
            counts.iter().map(|counts| counts.get(end).copied().unwrap_or_default().to_string()).collect();
        let _ = writeln!(text, "| {end} | {} |", cells.join(" | "));
    }
    text.push('\n');
}

/// The changes of the number of Machines, and their effect.
fn autoscaling(text: &mut String, side: &Side, scaling: &Scaling, script: &Script) {
    let last = script.long_overload.saturating_sub(script.overload - script.warm_up);
    let machines_at = |at: Duration| {
        let found = scaling.machines.iter().rev().find(|(seen, _)| *seen <= at);
        found.map_or(POOL.0, |(_, machines)| *machines)
    };
    let _ = write!(
        text,
        "## Autoscaling\n\n\
         fly-autoscaler's rules start and stop Machines during the hour, and then while {OVERLOAD} times the capacity of one \
         app ({:.0} requests a second) arrive for {:.0} minutes. At the beginning of that overload there are {} Machines and {:.0} \
         good responses a second, at its end {} Machines and {:.0}.\n\n\
         ![number of Machines](experiment/machines.png)\n\n",
        OVERLOAD * capacity(),
        setup::minutes(script.long_overload),
        side.machines_at_overload,
        goodput(&side.overload, script),
        machines_at(scaling.overload + script.long_overload),
        numbers::goodput_between(&side.overload, last, script.long_overload),
    );
    if scaling.changes.is_empty() {
        text.push_str("No rule changed their number.\n\n");
        return;
    }
    text.push_str("| at | started Machines | fly-autoscaler | because of |\n|---|---|---|---|\n");
    for change in &scaling.changes {
        let what = match change.what {
            Action::Start(count) => format!("starts {count}"),
            Action::Stop(count) => format!("stops {count}"),
        };
        let _ = writeln!(text, "| {} | {} | {what} | {} |", clock(change.at), change.started, change.why);
    }
    let _ = write!(
        text,
        "\nThe last column has the results of the rules' queries: the numbers of Machines that CPU, memory and latency demand, and \
         the number to which quiet Machines may be reduced (10: no reduction). The minimum is always {}, so the loss of a Machine \
         is a reason to start one.\n\n",
        POOL.0
    );
}

fn row(text: &mut String, name: &str, sides: &[Side], cell: impl Fn(&Side) -> String) {
    let cells: Vec<String> = sides.iter().map(cell).collect();
    let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
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
pub mod tests {
    use super::*;
    use crate::autoscaler::Change;
    use crate::load::End;
    use crate::numbers::tests::outcome;

    fn busy(all: f64) -> Busy {
        Busy { all, ours: all / 2.0 }
    }

    pub fn side(form: Form, failed: usize, ms: u64) -> Side {
        let mut outcomes: Vec<Outcome> = (0..10_000).map(|_| outcome(1.0, ms, End::Good)).collect();
        for outcome in outcomes.iter_mut().take(failed) {
            outcome.end = End::Answered(502, "the app");
        }
        let overload = (0..ms).map(|_| outcome(10.0, 5, End::Good)).collect();
        Side {
            form,
            seed: 1,
            outcomes,
            overload,
            machines_at_overload: 3,
            busy: vec![busy(0.2), busy(0.4)],
            busy_overload: vec![busy(0.5)],
            scaling: None,
        }
    }

    #[test]
    fn the_document_says_which_claims_hold_and_which_do_not() {
        let script = Script::hour();
        let sides = [side(Form::One, 500, 100), side(Form::Outrigger, 2, 60)];
        let text = document(&sides, &[], &script);
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
    fn bounds_hold_only_if_they_do_with_every_seed() {
        let script = Script::hour();
        let other = |seed: u64, failed: usize| Side { seed, ..side(Form::Outrigger, failed, 60) };
        let text = document(&[side(Form::One, 0, 1), other(1, 0)], &[other(2, 1), other(7, 2)], &script);
        assert!(text.contains("| with each of 3 seeds | |"));
        assert!(text.contains("| availability at least 99.99 % | **does not hold**, only in 2 of 3 |"));
        assert!(text.contains("| p99 of good responses at most 165 ms | holds |"));
        assert!(text.contains("under overload at least 968 | **does not hold**, only in 0 of 3 |"));
        assert!(text.contains("| three with Outrigger | 7 | 99.980 % | 2 | 60.0 ms | 4 |"));
    }

    #[test]
    fn each_change_of_the_number_of_machines_is_listed() {
        let script = Script::hour();
        let second = Duration::from_secs;
        let change = Change { at: second(246), started: 2, what: Action::Start(1), why: "cpu 3".to_owned() };
        let machines = vec![(second(0), 2), (second(250), 3)];
        let scaling = Scaling { changes: vec![change], machines, overload: second(242) };
        let scaled = Side { scaling: Some(scaling), machines_at_overload: 2, ..side(Form::Autoscaled, 0, 60) };
        let text = document(&[scaled], &[], &script);
        assert!(text.contains("| 61:30 | 2 | starts 1 | cpu 3 |"));
        assert!(text.contains("there are 2 Machines") && text.contains("at its end 3 Machines"), "{text}");
    }
}
