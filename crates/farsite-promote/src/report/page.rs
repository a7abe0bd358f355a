//! The report as one HTML page that needs nothing but itself.

use minijinja::{Environment, context};

use super::Report;

const TEMPLATE: &str = include_str!("../../templates/report.html");

/// Seconds as people read them.
fn span(seconds: f64) -> String {
    if seconds < 10.0 {
        format!("{seconds:.2} s")
    } else if seconds < 120.0 {
        format!("{seconds:.1} s")
    } else if seconds < 7200.0 {
        format!("{:.0} min {:02.0} s", (seconds / 60.0).floor(), (seconds % 60.0).floor())
    } else {
        format!("{:.0} h {:02.0} min", (seconds / 3600.0).floor(), ((seconds % 3600.0) / 60.0).floor())
    }
}

pub(super) fn html(report: &Report) -> String {
    let mut environment = Environment::new();
    environment.add_filter("span", |seconds: f64| span(seconds));
    // The name's ending turns escaping on.
    environment
        .add_template("report.html", TEMPLATE)
        .expect("the built-in template is valid: a test renders it");
    let template = environment.get_template("report.html").expect("it was added just now");
    template
        .render(context! { report => minijinja::value::Serde(report) })
        .expect("the template uses fields that a report always has")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_like_spans() {
        assert_eq!([0.25, 61.0, 600.5, 7_300.0].map(span), ["0.25 s", "61.0 s", "10 min 00 s", "2 h 01 min"]);
    }
}
