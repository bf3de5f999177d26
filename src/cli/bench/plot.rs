//! Lines in a plot, as the text of an SVG: no scripts, no fonts of its own, light background.

/// What stands around the lines.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axes<'a> {
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    /// Each decade of x as wide as the next one. Points at 0 or below are left out then.
    pub(super) log_x: bool,
}

/// A line, and its name in the legend.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
/// The rectangle that lines are drawn in.
const LEFT: f64 = 80.0;
const RIGHT: f64 = WIDTH - 40.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = HEIGHT - 88.0;
/// Told apart by people who see fewer colours, too.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// One plot. Values begin at 0 on the y axis, so that twice as high is twice as much.
pub(super) fn svg(axes: Axes<'_>, lines: &[Line]) -> String {
    let shown = |line: &Line| -> Vec<(f64, f64)> {
        let is_there = |(x, y): &&(f64, f64)| x.is_finite() && y.is_finite() && (!axes.log_x || *x > 0.0);
        line.points
            .iter()
            .filter(is_there)
            .map(|(x, y)| (if axes.log_x { x.log10() } else { *x }, *y))
            .collect()
    };
    let lines: Vec<(&str, Vec<(f64, f64)>)> =
        lines.iter().map(|line| (line.name.as_str(), shown(line))).collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let x = Scale::around(all().map(|(x, _)| *x), if axes.log_x { Ends::Decades } else { Ends::Values });
    let y = Scale::around(all().map(|(_, y)| *y), Ends::FromZero);
    let to = |(at_x, at_y): &(f64, f64)| {
        (LEFT + x.share(*at_x) * (RIGHT - LEFT), BOTTOM - y.share(*at_y) * (BOTTOM - TOP))
    };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    let middle = (LEFT + RIGHT) / 2.0;
    out.push_str(&format!(
        "<g font-size=\"16\">{}</g>\n",
        text(middle, 26.0, "middle", axes.title).trim_end()
    ));
    out.push_str(&text(middle, BOTTOM + 42.0, "middle", axes.x));
    out.push_str(&text(LEFT - 64.0, TOP - 14.0, "start", axes.y));
    for tick in y.ticks() {
        let (_, at) = to(&(x.low, tick));
        out.push_str(&rule((LEFT, at), (RIGHT, at), "#ddd"));
        out.push_str(&text(LEFT - 8.0, at + 4.5, "end", &number(tick)));
    }
    for tick in x.ticks() {
        let (at, _) = to(&(tick, y.low));
        out.push_str(&rule((at, BOTTOM), (at, BOTTOM + 5.0), "#222"));
        let value = if axes.log_x { 10_f64.powf(tick) } else { tick };
        out.push_str(&text(at, BOTTOM + 21.0, "middle", &number(value)));
    }
    out.push_str(&rule((LEFT, BOTTOM), (RIGHT, BOTTOM), "#222"));
    let wide = (RIGHT - LEFT) / lines.len().max(1) as f64;
    for (nth, ((name, points), colour)) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let placed: Vec<(f64, f64)> = points.iter().map(to).collect();
        let path: Vec<String> = placed.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        out.push_str(&format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n",
            path.join(" ")
        ));
        for (x, y) in placed {
            out.push_str(&format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>\n"));
        }
        let (x, y) = (LEFT + wide * nth as f64, BOTTOM + 70.0);
        out.push_str(&format!(
            "<line x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" stroke-width=\"3\"/>\n",
            x + 22.0
        ));
        out.push_str(&text(x + 28.0, y + 4.5, "start", name));
    }
    out.push_str("</svg>\n");
    out
}

/// Plots one below the other, in one picture.
pub(super) fn stacked(plots: &[String]) -> String {
    let height = HEIGHT * plots.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\">\n"
    );
    for (nth, plot) in plots.iter().enumerate() {
        out.push_str(&format!("<g transform=\"translate(0 {})\">\n{plot}</g>\n", HEIGHT * nth as f64));
    }
    out.push_str("</svg>\n");
    out
}

/// Where an axis begins and ends.
#[derive(Clone, Copy)]
enum Ends {
    /// At whole decades.
    Decades,
    /// At the values themselves.
    Values,
    /// At 0, and at a tick that no value exceeds.
    FromZero,
}

struct Scale {
    low: f64,
    high: f64,
    /// From one tick to the next.
    step: f64,
}

impl Scale {
    fn around(values: impl Iterator<Item = f64>, ends: Ends) -> Self {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        // Without any value, and with one only, an axis still needs a length.
        let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
        match ends {
            Ends::Decades => {
                let low = low.floor();
                Self { low, high: high.ceil().max(low + 1.0), step: 1.0 }
            }
            Ends::Values => {
                let high = if high > low { high } else { low + 1.0 };
                Self { low, high, step: step(high - low) }
            }
            Ends::FromZero => {
                let high = if high > 0.0 { high } else { 1.0 };
                let step = step(high);
                Self { low: low.min(0.0), high: (high / step).ceil() * step, step }
            }
        }
    }

    /// How far along the axis a value lies, from 0 to 1.
    fn share(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    fn ticks(&self) -> Vec<f64> {
        let first = (self.low / self.step).ceil();
        // What is added up would miss the last one by a rounding.
        let count = ((self.high / self.step) + 1e-9).floor() - first;
        (0..=count.max(0.0) as u32).map(|nth| (first + f64::from(nth)) * self.step).collect()
    }
}

/// 1, 2 or 5 times a power of ten, of which about five make the length.
fn step(length: f64) -> f64 {
    let decade = 10_f64.powf((length / 5.0).log10().floor());
    let rest = length / 5.0 / decade;
    let times = [1.0, 2.0, 5.0].into_iter().find(|times| rest <= *times).unwrap_or(10.0);
    times * decade
}

/// As short as it can be, with commas: 0.5, 3, 10,000.
fn number(value: f64) -> String {
    if value.abs() < 1000.0 {
        let text = format!("{value:.3}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{:.0}", value.abs());
    let mut out = String::from(if value < 0.0 { "-" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn text(x: f64, y: f64, anchor: &str, words: &str) -> String {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>\n")
}

fn rule(from: (f64, f64), to: (f64, f64), colour: &str) -> String {
    format!(
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>\n",
        from.0, from.1, to.0, to.1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, points: &[(f64, f64)]) -> Line {
        Line { name: name.to_owned(), points: points.to_vec() }
    }

    #[test]
    fn decades_are_equally_wide_and_values_begin_at_zero() {
        let axes = Axes { title: "cost & size", x: "tables", y: "ns", log_x: true };
        let lines = [line("a < b", &[(1.0, 0.0), (10.0, 250.0), (0.0, 9.0), (100.0, 500.0)]), line("b", &[])];
        let plot = svg(axes, &lines);
        // Marks at three decades, half way up, and the point at 0 left out.
        assert!(plot.contains("points=\"80.0,312.0 380.0,180.0 680.0,48.0\""), "{plot}");
        for said in ["cost &amp; size", "a &lt; b", ">tables<", ">ns<", ">1<", ">10<", ">100<", ">500<"] {
            assert!(plot.contains(said), "{said}: {plot}");
        }
        assert!(plot.starts_with("<svg ") && plot.ends_with("</svg>\n") && !plot.contains("script"));
        assert!(!plot.contains("NaN") && !plot.contains("inf"), "{plot}");
        let both = stacked(&[plot.clone(), plot]);
        assert_eq!((both.matches("<svg ").count(), both.matches("</svg>").count()), (3, 3));
        assert!(both.contains("height=\"800\"") && both.contains("translate(0 400)"), "{both}");
    }

    #[test]
    fn ticks_are_round() {
        let of = |values: &[f64], ends| Scale::around(values.iter().copied(), ends).ticks();
        assert_eq!(of(&[420.0, 1730.0], Ends::FromZero), [0.0, 500.0, 1000.0, 1500.0, 2000.0]);
        assert_eq!(of(&[1.0, 3.0, 5.0], Ends::Values), [1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(of(&[0.0, 4.2], Ends::Decades), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(of(&[], Ends::FromZero).len(), 6);
        assert_eq!(of(&[3.0], Ends::Values).first(), Some(&3.0));
        assert_eq!([0.5, 3.0, 10_000.0, 1_234_567.0].map(number), ["0.5", "3", "10,000", "1,234,567"]);
    }
}
