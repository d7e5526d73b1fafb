//! The pictures: one for each subject, with all sides above each other over the same hour.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use xtask::Result;
use xtask::error::While;

use crate::clock::{FACTOR, seconds};
use crate::numbers::{self, Tally, slices, well_behaved};
use crate::script::{DEADLINE, Fault, Script};
use crate::side::{POOL, Scaling, Side};

const WIDE: u32 = 1100;
/// Of each side's part, and of title and legend.
const PANEL: u32 = 180;
const FRAME: u32 = 60;
/// Each point of a line covers this many seconds of the hour.
const WIDTH: f64 = 15.0;

type Drawn = std::result::Result<(), Box<dyn StdError>>;
type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
type Point = (f64, f64);

/// One picture: its subject, the unit of its axis, the axis's maximum, and each side's points.
struct Subject<'a> {
    title: &'a str,
    unit: &'a str,
    top: f64,
    values: &'a dyn Fn(&Side) -> Vec<Point>,
}

/// Writes all pictures into this directory.
pub fn all(dir: &Path, sides: &[Side], script: &Script) -> Result<()> {
    static FONT: Once = Once::new();
    FONT.call_once(|| {
        // Cannot fail: the crate provides a valid font.
        let _ = register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    });
    let width = seconds(WIDTH);
    let over_time = |side: &Side, value: &dyn Fn(&Tally) -> Option<f64>| -> Vec<Point> {
        let all = slices(well_behaved(&side.outcomes), script.length(), width);
        all.iter().filter_map(|(at, tally)| Some((minute(*at), value(tally)?))).collect()
    };
    let errors = |side: &Side| over_time(side, &|tally| Some(100.0 * (1.0 - tally.availability())));
    let p99 = |side: &Side| over_time(side, &|tally| Some(tally.percentile(99.0)?.as_secs_f64() * 1000.0));
    let goodput = |side: &Side| -> Vec<Point> {
        let all = slices(&side.outcomes, script.length(), width);
        all.iter().map(|(at, tally)| (minute(*at), tally.good as f64 / width.as_secs_f64())).collect()
    };
    let most = |values: &dyn Fn(&Side) -> Vec<Point>| {
        sides.iter().flat_map(values).map(|(_, value)| value).fold(1.0, f64::max) * 1.08
    };
    let subjects = [
        (
            "errors",
            Subject { title: "Failed requests of well-behaved clients", unit: "%", top: 105.0, values: &errors },
        ),
        (
            "latency",
            Subject {
                title: "p99 of good responses to well-behaved clients",
                unit: "ms of the run",
                top: seconds(DEADLINE).as_secs_f64() * 1000.0,
                values: &p99,
            },
        ),
        (
            "goodput",
            Subject {
                title: "Good responses, floods included",
                unit: "a second",
                top: most(&goodput),
                values: &goodput,
            },
        ),
    ];
    for (name, subject) in subjects {
        let file = dir.join(format!("{name}.png"));
        draw(&file, &subject, sides, script).while_(format_args!("drawing {}", file.display()))?;
    }
    for scaling in sides.iter().filter_map(|side| side.scaling.as_ref()) {
        let file = dir.join("machines.png");
        machines(&file, scaling, script).while_(format_args!("drawing {}", file.display()))?;
    }
    let file = dir.join("overload.png");
    overload(&file, sides, script).while_(format_args!("drawing {}", file.display()))
}

/// A time of the run, in minutes of the hour.
fn minute(at: Duration) -> f64 {
    at.as_secs_f64() * f64::from(FACTOR) / 60.0
}

fn draw(file: &Path, subject: &Subject<'_>, sides: &[Side], script: &Script) -> Drawn {
    let root = BitMapBackend::new(file, (WIDE, FRAME + PANEL * sides.len().max(1) as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let root =
        root.titled(&format!("{}, {}, over the minutes of the hour", subject.title, subject.unit), ("sans-serif", 24))?;
    let (root, foot) = root.split_vertically(root.dim_in_pixel().1.saturating_sub(26));
    for (number, (area, side)) in root.split_evenly((sides.len().max(1), 1)).iter().zip(sides).enumerate() {
        panel(area, subject, side, script, number)?;
    }
    legend(&foot)?;
    root.present()?;
    Ok(())
}

fn panel(area: &Area<'_>, subject: &Subject<'_>, side: &Side, script: &Script, number: usize) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .caption(side.form.words(), ("sans-serif", 17))
        .margin_right(16)
        .x_label_area_size(24)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..script.minutes, 0.0..subject.top)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh().light_line_style(TRANSPARENT).x_labels(13).y_labels(4);
    mesh.x_label_formatter(&|minute| format!("{minute:.0}")).y_label_formatter(&|value| format!("{value:.0}"));
    mesh.label_style(("sans-serif", 14)).draw()?;
    drop(mesh);
    chart.draw_series(shades(script, subject.top))?;
    let colour = Palette99::pick(number).to_rgba();
    chart.draw_series(LineSeries::new((subject.values)(side), colour.stroke_width(2)))?;
    Ok(())
}

/// The times of the faults.
fn shades(script: &Script, top: f64) -> impl Iterator<Item = Rectangle<Point>> {
    script.lines.iter().map(move |line| {
        let (from, to) = (line.at, line.at + line.minutes);
        Rectangle::new([(from, 0.0), (to, top)], colour(line.fault).mix(0.25).filled())
    })
}

/// The number of Machines over the hour and the overload after it.
fn machines(file: &Path, scaling: &Scaling, script: &Script) -> Drawn {
    let root = BitMapBackend::new(file, (WIDE, 320)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled("Started Machines, over the minutes; at the end the overload", ("sans-serif", 24))?;
    let (root, foot) = root.split_vertically(root.dim_in_pixel().1.saturating_sub(26));
    let top = POOL.1 as f64 + 0.5;
    let overload = (minute(scaling.overload), minute(scaling.overload + script.long_overload));
    let mut chart = ChartBuilder::on(&root)
        .margin_right(16)
        .x_label_area_size(24)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..overload.1, 0.0..top)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh().light_line_style(TRANSPARENT).x_labels(18).y_labels(6);
    mesh.x_label_formatter(&|minute| format!("{minute:.0}")).y_label_formatter(&|value| format!("{value:.0}"));
    mesh.label_style(("sans-serif", 14)).draw()?;
    drop(mesh);
    chart.draw_series(shades(script, top))?;
    chart.draw_series([Rectangle::new([(overload.0, 0.0), (overload.1, top)], BLACK.mix(0.12).filled())])?;
    // Steps: each number until the next one.
    let mut steps: Vec<Point> = Vec::new();
    for (at, number) in &scaling.machines {
        steps.extend(steps.last().map(|(_, last)| (minute(*at), *last)));
        steps.push((minute(*at), *number as f64));
    }
    let steps = steps.into_iter().filter(|(minute, _)| *minute <= overload.1);
    chart.draw_series(LineSeries::new(steps, Palette99::pick(4).to_rgba().stroke_width(2)))?;
    legend(&foot)?;
    root.present()?;
    Ok(())
}

fn colour(fault: Fault) -> RGBColor {
    match fault {
        Fault::MachineKilled(_) => RGBColor(200, 0, 0),
        Fault::AppCrash(_) => RGBColor(230, 120, 0),
        Fault::AppHang(_) => RGBColor(150, 0, 150),
        Fault::SlowDatabase(_) => RGBColor(150, 120, 40),
        Fault::Deploy(_) => RGBColor(0, 90, 200),
        Fault::Burst(_) => RGBColor(80, 80, 80),
    }
}

/// The meaning of each shade.
fn legend(area: &Area<'_>) -> Drawn {
    use crate::script::Flood;
    use outrigger_edge::Strategy;
    let faults = [
        (Fault::MachineKilled(0), "Machine killed"),
        (Fault::AppCrash(0), "app crash"),
        (Fault::AppHang(0), "app hang"),
        (Fault::SlowDatabase(1.0), "slow database"),
        (Fault::Deploy(Strategy::Rolling), "deploy"),
        (Fault::Burst(Flood::Crowd), "burst"),
    ];
    for ((fault, words), x) in faults.into_iter().zip((60..).step_by(165)) {
        area.draw(&Rectangle::new([(x, 5), (x + 18, 19)], colour(fault).mix(0.45).filled()))?;
        area.draw(&Text::new(words, (x + 24, 4), ("sans-serif", 16)))?;
    }
    Ok(())
}

/// Good responses per second of each side during the overload.
fn overload(file: &Path, sides: &[Side], script: &Script) -> Drawn {
    let root = BitMapBackend::new(file, (WIDE, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let width = Duration::from_millis(500);
    let lines: Vec<Vec<Point>> = sides
        .iter()
        .map(|side| {
            let all = slices(&side.overload, script.overload, width);
            all.iter().map(|(at, tally)| (at.as_secs_f64(), tally.good as f64 / width.as_secs_f64())).collect()
        })
        .collect();
    let top = lines.iter().flatten().map(|(_, value)| *value).fold(1.0, f64::max) * 1.1;
    let offered = crate::script::OVERLOAD * crate::script::capacity();
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("Good responses a second for {offered:.0} requests"), ("sans-serif", 24))
        .margin_right(16)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..script.overload.as_secs_f64(), 0.0..top)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh().light_line_style(TRANSPARENT).x_desc("seconds of the run");
    mesh.y_label_formatter(&|value| format!("{value:.0}")).x_label_formatter(&|value| format!("{value:.0}"));
    mesh.label_style(("sans-serif", 14)).draw()?;
    drop(mesh);
    for (number, (line, side)) in lines.into_iter().zip(sides).enumerate() {
        let colour = Palette99::pick(number).to_rgba();
        let label = format!("{}: {:.0}", side.form.words(), numbers::goodput(&side.overload, script));
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .label_font(("sans-serif", 15))
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}
