//! The pictures: resources of the proxies and latencies, over the time of the run.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Once;

use plotters::prelude::*;
use plotters::style::register_font;
use xtask::Result;
use xtask::error::While;

use crate::judge::Kind;
use crate::machines::{NAMES, NUMBER};
use crate::sample::Sample;
use crate::slope::{self, Point};
use crate::soak::{Soak, WARM_UP};

type Drawn = std::result::Result<(), Box<dyn StdError>>;

/// One picture.
struct Picture<'a> {
    title: &'a str,
    lines: Vec<(String, Vec<Point>)>,
    /// In seconds.
    length: f64,
    is_logarithmic: bool,
}

/// Writes all pictures into this directory.
pub fn all(dir: &Path, soak: &Soak) -> Result<()> {
    static FONT: Once = Once::new();
    FONT.call_once(|| {
        // Cannot fail: the crate provides a valid font.
        let _ = register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    });
    let length = soak.length.as_secs_f64();
    let of_proxies = |of: fn(&Sample) -> f64| -> Vec<(String, Vec<Point>)> {
        let line = |n: usize| soak.samples.iter().filter(move |sample| sample.machine == n);
        let points = |n: usize| line(n).map(|sample| (sample.at, of(sample))).collect();
        (0..NUMBER).map(|n| (format!("proxy {}", NAMES[n]), points(n))).collect()
    };
    let of_kinds = |percent: f64| -> Vec<(String, Vec<Point>)> {
        let known = Kind::ALL.iter().filter_map(|kind| Some((kind, soak.results.latencies.get(kind)?)));
        let points = |all: &[Point]| slope::percentiles(all.iter().copied(), 0.0, length, percent);
        known.map(|(kind, all)| (kind.name().to_owned(), points(all))).collect()
    };
    let pictures = [
        ("memory", "Resident memory of each proxy, MiB", of_proxies(|sample| sample.memory), false),
        ("descriptors", "Open file descriptors of each proxy", of_proxies(|sample| sample.descriptors), false),
        ("threads", "Threads of each proxy", of_proxies(|sample| sample.threads), false),
        ("p50", "Median latency, ms", of_kinds(50.0), true),
        ("p99", "p99 latency, ms", of_kinds(99.0), true),
    ];
    for (name, title, lines, is_logarithmic) in pictures {
        let file = dir.join(format!("{name}.png"));
        let picture = Picture { title, lines, length, is_logarithmic };
        draw(&file, &picture).while_(format_args!("drawing {}", file.display()))?;
    }
    Ok(())
}

fn draw(file: &Path, picture: &Picture<'_>) -> Drawn {
    let root = BitMapBackend::new(file, (1100, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let values = || picture.lines.iter().flat_map(|(_, points)| points).map(|point| point.1);
    // Powers of ten, drawn at their exponents.
    let scale = |value: f64| if picture.is_logarithmic { value.max(0.1).log10() } else { value };
    let top = scale(values().fold(1.0, f64::max) * 1.1);
    let bottom = if picture.is_logarithmic { scale(values().fold(f64::MAX, f64::min)).min(top - 1.0) } else { 0.0 };
    // The last sixth of the picture is for the legend.
    let minutes = picture.length / 60.0;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("{}, over the minutes of the run", picture.title), ("sans-serif", 24))
        .margin_right(16)
        .x_label_area_size(28)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..minutes * 1.2, bottom..top)?;
    let as_minute = |minute: &f64| {
        if *minute > minutes { String::new() } else { format!("{minute:.1}").trim_end_matches(".0").to_owned() }
    };
    let as_value =
        |at: &f64| if picture.is_logarithmic { format!("{:.1}", 10_f64.powf(*at)) } else { format!("{at:.0}") };
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh().light_line_style(TRANSPARENT).label_style(("sans-serif", 14));
    mesh.x_label_formatter(&as_minute).y_label_formatter(&as_value).draw()?;
    drop(mesh);
    // The warm-up, which does not count.
    let warm_up = [(0.0, bottom), (WARM_UP * minutes, top)];
    chart.draw_series([Rectangle::new(warm_up, RGBColor(120, 120, 120).mix(0.15).filled())])?;
    for (number, (label, points)) in picture.lines.iter().enumerate() {
        let colour = Palette99::pick(number).to_rgba();
        let points = points.iter().map(|(at, value)| (at / 60.0, scale(*value)));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 14))
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}
