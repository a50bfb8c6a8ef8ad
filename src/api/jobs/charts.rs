//! Pictures of a job's metrics, as SVG written by hand: no fonts, no library, readable in any browser.
//!
//! The metrics routes answer them. Labels are the users' own, so every text is escaped.

use std::fmt::Write;

use serde_json::Value;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 32.0;
const RIGHT: f64 = 20.0;
const BOTTOM: f64 = 44.0;
/// Classes that a picture can show; beyond it squares become too small to read.
const MOST_CLASSES: usize = 100;

/// Training and evaluation loss over steps.
pub fn loss(history: &[Value]) -> String {
    let series = |name: &str| -> Vec<(f64, f64)> {
        let point = |entry: &Value| Some((entry.get("step")?.as_f64()?, entry.get(name)?.as_f64()?));
        history.iter().filter_map(point).filter(|(_, y)| y.is_finite()).collect()
    };
    let (train, eval) = (series("loss"), series("eval_loss"));
    let mut svg = open(WIDTH, HEIGHT, "Loss over steps");
    if train.is_empty() && eval.is_empty() {
        text(&mut svg, WIDTH / 2.0, HEIGHT / 2.0, "middle", "no loss has been logged yet");
        return close(svg);
    }
    let axes = Axes::around(train.iter().chain(&eval));
    axes.draw(&mut svg);
    axes.line(&mut svg, &train, "#1f77b4");
    axes.line(&mut svg, &eval, "#d62728");
    for (x, y) in &eval {
        let (x, y) = axes.place(*x, *y);
        add(&mut svg, format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#d62728\"/>"));
    }
    for (i, (name, color, shown)) in [("loss", "#1f77b4", !train.is_empty()), ("eval_loss", "#d62728", !eval.is_empty())].iter().enumerate()
    {
        if *shown {
            let x = WIDTH - RIGHT - 110.0;
            let y = TOP + 14.0 + 18.0 * i as f64;
            add(
                &mut svg,
                format_args!(
                    "<line x1=\"{x}\" y1=\"{0}\" x2=\"{1}\" y2=\"{0}\" stroke=\"{color}\" stroke-width=\"2\"/>",
                    y - 4.0,
                    x + 22.0
                ),
            );
            text(&mut svg, x + 28.0, y, "start", name);
        }
    }
    close(svg)
}

struct Axes {
    x: (f64, f64),
    y: (f64, f64),
}

impl Axes {
    fn around<'a>(points: impl Iterator<Item = &'a (f64, f64)>) -> Self {
        let (mut right, mut low, mut high) = (1.0f64, f64::INFINITY, f64::NEG_INFINITY);
        for (x, y) in points {
            right = right.max(*x);
            low = low.min(*y);
            high = high.max(*y);
        }
        // Losses are read against zero unless they are far from it.
        let low = if low > 0.0 && low < 0.7 * high { 0.0 } else { low };
        let room = if high > low { (high - low) * 0.05 } else { 0.5 };
        let bottom = if low == 0.0 { 0.0 } else { low - room };
        Self { x: (0.0, right), y: (bottom, high + room) }
    }

    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let across = (x - self.x.0) / (self.x.1 - self.x.0);
        let up = (y - self.y.0) / (self.y.1 - self.y.0);
        (LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))
    }

    fn draw(&self, svg: &mut String) {
        for y in ticks(self.y) {
            let (_, py) = self.place(0.0, y);
            add(svg, format_args!("<line x1=\"{LEFT}\" y1=\"{py:.1}\" x2=\"{}\" y2=\"{py:.1}\" stroke=\"#ddd\"/>", WIDTH - RIGHT));
            text(svg, LEFT - 8.0, py + 4.0, "end", &label(y));
        }
        for x in ticks(self.x) {
            let (px, _) = self.place(x, self.y.0);
            text(svg, px, HEIGHT - BOTTOM + 18.0, "middle", &label(x));
        }
        text(svg, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 8.0, "middle", "step");
    }

    fn line(&self, svg: &mut String, points: &[(f64, f64)], color: &str) {
        if points.is_empty() {
            return;
        }
        svg.push_str("<polyline fill=\"none\" stroke-width=\"1.5\" stroke=\"");
        svg.push_str(color);
        svg.push_str("\" points=\"");
        for (x, y) in points {
            let (x, y) = self.place(*x, *y);
            add(svg, format_args!("{x:.1},{y:.1} "));
        }
        svg.push_str("\"/>");
    }
}

/// About five round numbers in a range.
fn ticks((low, high): (f64, f64)) -> Vec<f64> {
    let span = (high - low).max(f64::MIN_POSITIVE);
    let rough = span / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (0..12).map(|i| (first + i) as f64 * step).take_while(|v| *v <= high + step * 1e-6).collect()
}

fn label(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text.is_empty() || text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// The matrix `{"labels": […], "matrix": [[…]]}`; none for anything else.
pub fn confusion(value: &Value) -> Option<String> {
    let labels: Vec<&str> = value.get("labels")?.as_array()?.iter().map(|l| l.as_str().unwrap_or_default()).collect();
    let rows: Vec<Vec<u64>> = value
        .get("matrix")?
        .as_array()?
        .iter()
        .map(|row| row.as_array().into_iter().flatten().map(|n| n.as_u64().unwrap_or_default()).collect())
        .collect();
    let n = labels.len();
    if n == 0 || rows.len() != n || rows.iter().any(|row| row.len() != n) {
        return None;
    }
    if n > MOST_CLASSES {
        let mut svg = open(WIDTH, 80.0, "Confusion matrix");
        text(&mut svg, WIDTH / 2.0, 44.0, "middle", &format!("{n} classes are too many for a picture; the numbers are in the JSON"));
        return Some(close(svg));
    }
    Some(draw_matrix(&labels, &rows))
}

fn draw_matrix(labels: &[&str], rows: &[Vec<u64>]) -> String {
    let n = labels.len();
    let cell = (560.0 / n as f64).clamp(12.0, 80.0);
    let (left, top) = (170.0, 60.0);
    let side = cell * n as f64;
    let mut svg = open(left + side + 30.0, top + side + 150.0, "Confusion matrix: rows are the true classes");
    text(&mut svg, left + side / 2.0, top - 12.0, "middle", "predicted");
    for (i, row) in rows.iter().enumerate() {
        let total: u64 = row.iter().sum();
        let y = top + cell * i as f64;
        text(&mut svg, left - 8.0, y + cell / 2.0 + 4.0, "end", &cut(labels[i]));
        for (j, count) in row.iter().enumerate() {
            let x = left + cell * j as f64;
            let share = if total > 0 { *count as f64 / total as f64 } else { 0.0 };
            let fill = shade(share, i == j);
            add(
                &mut svg,
                format_args!(
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{cell:.1}\" height=\"{cell:.1}\" fill=\"{fill}\" stroke=\"#fff\"><title>{} as {}: {count}</title></rect>",
                    escape(labels[i]),
                    escape(labels[j])
                ),
            );
            if cell >= 24.0 {
                let ink = if share > 0.55 { "#fff" } else { "#222" };
                add(
                    &mut svg,
                    format_args!(
                        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{ink}\" pointer-events=\"none\">{count}</text>",
                        x + cell / 2.0,
                        y + cell / 2.0 + 4.0
                    ),
                );
            }
        }
    }
    for (j, name) in labels.iter().enumerate() {
        let (x, y) = (left + cell * (j as f64 + 0.5), top + side + 12.0);
        add(
            &mut svg,
            format_args!(
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"end\" transform=\"rotate(-45 {x:.1} {y:.1})\">{}</text>",
                escape(&cut(name))
            ),
        );
    }
    close(svg)
}

/// White to blue on the diagonal, white to red beside it.
fn shade(share: f64, right: bool) -> String {
    let fade = |full: f64| (255.0 - (255.0 - full) * share).round() as u8;
    let (r, g, b) = if right { (8.0, 81.0, 156.0) } else { (203.0, 24.0, 29.0) };
    format!("#{:02x}{:02x}{:02x}", fade(r), fade(g), fade(b))
}

fn cut(label: &str) -> String {
    match label.char_indices().nth(22) {
        Some((end, _)) => format!("{}…", &label[..end]),
        None => label.to_owned(),
    }
}

fn open(width: f64, height: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" \
         font-family=\"system-ui,sans-serif\" font-size=\"12\" role=\"img\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\
         <text x=\"12\" y=\"20\" font-size=\"14\" font-weight=\"600\">{}</text>",
        escape(title)
    )
}

fn close(mut svg: String) -> String {
    svg.push_str("</svg>\n");
    svg
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    add(svg, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#222\">{}</text>", escape(content)));
}

fn add(svg: &mut String, content: std::fmt::Arguments<'_>) {
    svg.write_fmt(content).expect("a string takes whatever is written to it");
}

/// Escapes markup, and drops control characters, which XML has no place for.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn the_curve_has_a_point_for_each_entry() {
        let history: Vec<Value> = (1..=5).map(|i| json!({"step": i * 10, "loss": 1.0 / f64::from(i)})).collect();
        let svg = loss(&history);
        let points = svg.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(points.split_whitespace().count(), 5);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn a_single_entry_and_none_are_pictures_too() {
        assert!(loss(&[json!({"step": 1, "loss": 0.5})]).contains("polyline"));
        assert!(loss(&[]).contains("no loss"));
        assert!(!loss(&[json!({"step": 1, "loss": null})]).contains("NaN"));
    }

    #[test]
    fn labels_cannot_break_out_of_the_picture() {
        let matrix = json!({"labels": ["<script>alert(1)</script>", "b\u{0}"], "matrix": [[3, 1], [0, 4]]});
        let svg = confusion(&matrix).unwrap();
        assert!(!svg.contains("<script") && !svg.contains('\u{0}'));
        assert_eq!(svg.matches("<rect").count(), 5);
    }

    #[test]
    fn a_ragged_or_missing_matrix_is_no_picture() {
        assert_eq!(confusion(&Value::Null), None);
        assert_eq!(confusion(&json!({"labels": ["a", "b"], "matrix": [[1], [2]]})), None);
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks((0.0, 1.0)), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(label(0.6000000000000001), "0.6");
        assert_eq!(label(0.0), "0");
    }
}
