//! Requests, and the concurrency limit.

use crate::control::page::html::{Html, facts, note, table};
use crate::control::status::headline::{duration, number, percent, time};
use crate::control::status::{Point, Rates, Reason, Status, Traffic};

/// Requests by route, and over the last minutes.
pub fn routes(traffic: &Traffic) -> Html {
    let mut html = Html::new();
    let now = &traffic.all.last_10_s;
    html.add(&facts(&[
        (
            "requests/s",
            spark(
                "Requests each second over 5 minutes",
                &traffic.history,
                |point| Some(point.requests_per_s),
                &number(now.requests_per_s),
            ),
        ),
        (
            "errors/s",
            spark(
                "Errors each second over 5 minutes",
                &traffic.history,
                |point| Some(point.errors_per_s),
                &number(now.errors_per_s),
            ),
        ),
        (
            "refused/s",
            spark(
                "Refused requests each second over 5 minutes",
                &traffic.history,
                |point| Some(point.rejected_per_s),
                &number(now.rejected_per_s),
            ),
        ),
        ("p99", spark("99th percentile over 5 minutes", &traffic.history, |point| point.p99_ms, &ms(now.p99_ms))),
        ("in flight", Html::of(traffic.in_flight)),
        ("connections", Html::of(traffic.connections)),
    ]));
    if traffic.routes.is_empty() {
        html.add(&note("No requests in the last minute."));
        return html;
    }
    let mut rows: Vec<Vec<Html>> = traffic
        .routes
        .iter()
        .map(|route| {
            let mut name = Html::of(&route.route);
            name.raw(" <small>").text(&route.priority).raw("</small>");
            row(name, &route.windows.last_10_s)
        })
        .collect();
    if traffic.other_routes.windows.last_60_s.requests_per_s > 0.0 {
        let others = Html::of(format_args!("{} other routes", traffic.other_routes.routes));
        rows.push(row(others, &traffic.other_routes.windows.last_10_s));
    }
    html.add(&table(
        "Routes, the busiest of the last minute first",
        &["route", "requests/s", "errors/s", "refused/s", "p50", "p99"],
        rows,
    ));
    html
}

fn row(name: Html, rates: &Rates) -> Vec<Html> {
    let each = |rate: f64| Html::of(number(rate));
    vec![
        name,
        each(rates.requests_per_s),
        each(rates.errors_per_s),
        each(rates.rejected_per_s),
        Html::of(ms(rates.p50_ms)),
        Html::of(ms(rates.p99_ms)),
    ]
}

fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), duration)
}

/// A value, and how it was over the last minutes.
fn spark(label: &'static str, points: &[Point], value: impl Fn(&Point) -> Option<f64>, now: &str) -> Html {
    /// Width and height, in units of the picture.
    const SIZE: (f64, f64) = (118.0, 20.0);
    let mut html = Html::of(now);
    let values: Vec<f64> = points.iter().map(|point| value(point).unwrap_or_default()).collect();
    let most = values.iter().copied().fold(0.0, f64::max);
    if values.len() < 2 || most == 0.0 {
        return html;
    }
    html.raw(" <svg class=\"spark\" viewBox=\"0 0 120 24\" role=\"img\" aria-label=\"")
        .raw(label)
        .raw("\"><polyline points=\"");
    let step = SIZE.0 / (values.len() - 1) as f64;
    for (at, value) in values.iter().enumerate() {
        html.text(format_args!("{:.0},{:.1} ", 1.0 + step * at as f64, 22.0 - SIZE.1 * value / most));
    }
    html.raw("\"/></svg>");
    html
}

/// The concurrency limit, and its queue by priority.
pub fn concurrency(status: &Status) -> Html {
    let concurrency = &status.concurrency;
    let mut html = facts(&[
        ("in flight", Html::of(format_args!("{} of {}", concurrency.in_flight, concurrency.limit))),
        ("waiting", Html::of(format_args!("{} of {}", concurrency.queued, concurrency.queue_limit))),
        ("app's latency", Html::of(ms(concurrency.latency_ms))),
        ("mode", Html::of(&concurrency.mode)),
    ]);
    let rows = status.traffic.priorities.iter().map(|priority| {
        let shed = match priority.shed_since {
            Some(since) => format!("{} since {}", percent(priority.shed_share), time(since)),
            None => "0 %".to_owned(),
        };
        vec![
            Html::of(&priority.priority),
            Html::of(number(priority.windows.last_10_s.requests_per_s)),
            Html::of(priority.queued),
            Html::of(shed),
        ]
    });
    html.add(&table(
        "Priorities, the most important first",
        &["priority", "requests/s", "waiting", "shed"],
        rows.collect(),
    ));
    html
}

/// How often each reason occurred.
pub fn reasons(caption: &'static str, reasons: &[Reason]) -> Html {
    if reasons.is_empty() {
        return Html::new();
    }
    let rows = reasons.iter().map(|reason| {
        vec![Html::of(reason.reason.replace('_', " ")), Html::of(number(reason.per_s)), Html::of(reason.total)]
    });
    table(caption, &["reason", "each second", "since the start"], rows.collect())
}
