//! A picture of a report: rejections over time, as an SVG file without scripts.

use std::fmt::Write;

use crate::report::Report;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 360.0;
/// Left, right, top and bottom of the plot.
const PLOT: (f64, f64, f64, f64) = (64.0, 924.0, 64.0, 312.0);

/// The picture.
pub fn svg(report: &Report) -> String {
    let time = &report.over_time;
    let series = [
        ("recorded", &time.rejected.recorded, "#8a8a8a", "3 3"),
        ("rules in force", &time.rejected.in_force, "#1f6fb2", ""),
        ("proposed rules", &time.rejected.proposed, "#c2410c", ""),
    ];
    let most = series.iter().flat_map(|(_, values, ..)| values.iter()).copied().max().unwrap_or_default().max(1);
    let top = nice(most);
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"system-ui, sans-serif\" font-size=\"12\" \
         role=\"img\" aria-label=\"Rejections over time\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n\
         <text x=\"{}\" y=\"24\" font-size=\"15\">Rejections every {}: {} requests, {} to {}</text>\n",
        PLOT.0,
        span(time.span_s),
        report.requests,
        escape(&report.from),
        escape(&report.until)
    );
    for step in 0..=4 {
        let (value, y) = (top * step / 4, PLOT.3 - (PLOT.3 - PLOT.2) * step as f64 / 4.0);
        let _ = writeln!(
            out,
            "<path d=\"M{} {y:.1}H{}\" stroke=\"#dddddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#444444\">{value}</text>",
            PLOT.0,
            PLOT.1,
            PLOT.0 - 6.0,
            y + 4.0
        );
    }
    let spans = time.requests.len().max(1);
    let x = |at: usize| PLOT.0 + (PLOT.1 - PLOT.0) * at as f64 / spans as f64;
    for step in 0..=6 {
        let at = spans * step / 6;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#444444\">{}</text>",
            x(at),
            PLOT.3 + 18.0,
            clock(time.from_ns / 1_000_000_000 + at as u64 * time.span_s)
        );
    }
    for (number, (name, values, colour, dashes)) in series.into_iter().enumerate() {
        let mut path = String::new();
        for (at, value) in values.iter().enumerate() {
            let y = PLOT.3 - (PLOT.3 - PLOT.2) * *value as f64 / top as f64;
            let _ = write!(path, "{}{:.1} {y:.1}H{:.1}", if at == 0 { 'M' } else { 'L' }, x(at), x(at + 1));
        }
        let left = PLOT.0 + 170.0 * number as f64;
        let total: u64 = values.iter().sum();
        let _ = writeln!(
            out,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" stroke-dasharray=\"{dashes}\"/>\
             <path d=\"M{left} 44h18\" stroke=\"{colour}\" stroke-width=\"3\" stroke-dasharray=\"{dashes}\"/>\
             <text x=\"{}\" y=\"48\">{name}: {total}</text>",
            left + 24.0
        );
    }
    out.push_str("</svg>\n");
    out
}

/// The next number of the form 1, 2, 4 or 8 times a power of ten; at least 4.
fn nice(most: u64) -> u64 {
    let mut power = 1_u64;
    loop {
        for digit in [4, 8, 12, 20] {
            if most <= digit * power {
                return digit * power;
            }
        }
        power = power.saturating_mul(10);
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        1 => "second".to_owned(),
        60 => "minute".to_owned(),
        _ => format!("{seconds} s"),
    }
}

/// The time of the day, in UTC.
fn clock(seconds: u64) -> String {
    let of_day = seconds % 86_400;
    format!("{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_ends_at_a_round_number() {
        assert_eq!([1, 4, 5, 9, 13, 21, 999].map(nice), [4, 4, 8, 12, 20, 40, 1200]);
        assert_eq!(clock(86_400 + 3_661), "01:01:01");
    }
}
