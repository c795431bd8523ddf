//! One chart: groups of horizontal bars with their spread, as an SVG file that is readable on light and dark pages.

use std::fmt::Write as _;

/// A chart.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub note: String,
    /// What the axis measures, with its unit.
    pub axis: String,
    /// A value that matters, drawn as a line.
    pub mark: Option<f64>,
    /// Names of the kinds of bars; a bar names its kind by its place here.
    pub legend: Vec<String>,
    /// Groups, from the top.
    pub groups: Vec<Group>,
}

/// Bars that belong together.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// What they have in common.
    pub label: String,
    /// The bars, from the top.
    pub bars: Vec<Bar>,
}

/// A bar, of one part or several end to end.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    /// Place in the legend.
    pub kind: usize,
    /// Lengths of its parts; the second and later ones are paler.
    pub parts: Vec<f64>,
    /// Least and greatest whole length that was measured.
    pub spread: (f64, f64),
    /// What stands behind it.
    pub text: String,
}

const WIDTH: f64 = 820.0;
const LEFT: f64 = 210.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 92.0;
const BAR: f64 = 15.0;
const BAR_GAP: f64 = 3.0;
const GROUP_GAP: f64 = 14.0;
const BOTTOM: f64 = 52.0;

/// Colours that differ for the colour-blind too (the palette of Okabe and Ito), a pair a kind: for light pages and
/// for dark ones.
const COLOURS: [(&str, &str); 6] = [
    ("#0072b2", "#56b4e9"),
    ("#e69f00", "#e69f00"),
    ("#d55e00", "#f0834a"),
    ("#009e73", "#2fc79b"),
    ("#cc79a7", "#dd9cc0"),
    ("#6b6b6b", "#a8a8a8"),
];

impl Chart {
    /// Whether there is anything to show.
    pub fn is_empty(&self) -> bool {
        self.groups.iter().all(|group| group.bars.is_empty())
    }

    /// The file.
    pub fn render(&self) -> String {
        let heights = self.groups.iter().map(|group| group.bars.len() as f64 * (BAR + BAR_GAP) + GROUP_GAP);
        let bottom = TOP + heights.sum::<f64>();
        let height = bottom + BOTTOM;
        let scale = Scale::for_values(self.greatest());
        let mut svg = String::new();
        let _ = writeln!(
            svg,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="{}">"#,
            escape(&self.title)
        );
        svg.push_str(&style());
        let _ = writeln!(svg, r#"<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>"#);
        let _ = writeln!(svg, r#"<text class="title" x="16" y="28">{}</text>"#, escape(&self.title));
        let _ = writeln!(svg, r#"<text class="note" x="16" y="48">{}</text>"#, escape(&self.note));
        self.render_legend(&mut svg);
        self.render_axis(&mut svg, &scale, bottom);
        self.render_groups(&mut svg, &scale);
        svg.push_str("</svg>\n");
        svg
    }

    fn greatest(&self) -> f64 {
        let bars = self.groups.iter().flat_map(|group| &group.bars);
        let lengths = bars.map(|bar| bar.spread.1.max(bar.parts.iter().sum()));
        lengths.chain(self.mark).fold(0.0, f64::max)
    }

    fn render_legend(&self, svg: &mut String) {
        let mut x = 16.0;
        for (kind, name) in self.legend.iter().enumerate() {
            let _ = writeln!(svg, r#"<rect class="k{kind}" x="{x}" y="60" width="12" height="12" rx="2"/>"#);
            let _ = writeln!(svg, r#"<text x="{}" y="70">{}</text>"#, x + 17.0, escape(name));
            x += 37.0 + name.len() as f64 * 6.4;
        }
    }

    fn render_axis(&self, svg: &mut String, scale: &Scale, bottom: f64) {
        for tick in scale.ticks() {
            let x = scale.x(tick);
            let _ =
                writeln!(svg, r#"<line class="grid" x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{bottom:.1}"/>"#);
            let _ = writeln!(
                svg,
                r#"<text class="mid" x="{x:.1}" y="{:.1}">{}</text>"#,
                bottom + 16.0,
                scale.label(tick)
            );
        }
        let middle = f64::midpoint(LEFT, WIDTH - RIGHT);
        let _ = writeln!(
            svg,
            r#"<text class="mid" x="{middle:.1}" y="{:.1}">{}</text>"#,
            bottom + 36.0,
            escape(&self.axis)
        );
        if let Some(mark) = self.mark {
            let x = scale.x(mark);
            let _ =
                writeln!(svg, r#"<line class="mark" x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{bottom:.1}"/>"#);
        }
    }

    fn render_groups(&self, svg: &mut String, scale: &Scale) {
        let mut y = TOP + GROUP_GAP / 2.0;
        for group in &self.groups {
            let middle = y + group.bars.len() as f64 * (BAR + BAR_GAP) / 2.0 + 3.0;
            let label = escape(&group.label);
            let _ = writeln!(svg, r#"<text class="end" x="{}" y="{middle:.1}">{label}</text>"#, LEFT - 10.0);
            for bar in &group.bars {
                render_bar(svg, scale, bar, y);
                y += BAR + BAR_GAP;
            }
            y += GROUP_GAP;
        }
    }
}

fn render_bar(svg: &mut String, scale: &Scale, bar: &Bar, y: f64) {
    let mut at = 0.0;
    for (place, part) in bar.parts.iter().enumerate() {
        let (x, end) = (scale.x(at), scale.x(at + part));
        let pale = if place == 0 { "" } else { " pale" };
        let _ = writeln!(
            svg,
            r#"<rect class="k{}{pale}" x="{x:.1}" y="{y:.1}" width="{:.1}" height="{BAR}"/>"#,
            bar.kind,
            (end - x).max(0.0)
        );
        at += part;
    }
    let (least, greatest) = (scale.x(bar.spread.0), scale.x(bar.spread.1));
    if greatest - least >= 1.0 {
        let middle = y + BAR / 2.0;
        let (top, bottom) = (middle - 4.0, middle + 4.0);
        let _ = writeln!(
            svg,
            r#"<path class="spread" d="M{least:.1} {middle:.1}H{greatest:.1}M{least:.1} {top:.1}V{bottom:.1}M{greatest:.1} {top:.1}V{bottom:.1}"/>"#
        );
    }
    let x = scale.x(at).max(greatest) + 6.0;
    let _ = writeln!(svg, r#"<text x="{x:.1}" y="{:.1}">{}</text>"#, y + BAR - 3.5, escape(&bar.text));
}

fn style() -> String {
    let mut style = String::from(
        "<style>\ntext{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#24292f}\n\
         .title{font-size:16px;font-weight:600}.note{fill:#57606a}.mid{text-anchor:middle}.end{text-anchor:end}\n\
         .page{fill:#ffffff}.grid{stroke:#d0d7de}.mark{stroke:#24292f;stroke-dasharray:4 3}.pale{opacity:.55}\n\
         .spread{stroke:#24292f;stroke-width:1.2;fill:none}\n",
    );
    let kinds = |pick: fn(&(&'static str, &'static str)) -> &'static str| -> String {
        COLOURS.iter().enumerate().map(|(kind, pair)| format!(".k{kind}{{fill:{}}}", pick(pair))).collect()
    };
    let _ = writeln!(style, "{}", kinds(|pair| pair.0));
    let _ = writeln!(
        style,
        "@media (prefers-color-scheme:dark){{text{{fill:#e6edf3}}.note{{fill:#9198a1}}.page{{fill:#0d1117}}\
         .grid{{stroke:#30363d}}.mark,.spread{{stroke:#e6edf3}}{}}}\n</style>",
        kinds(|pair| pair.1)
    );
    style
}

/// From values to places on the axis, which begins at zero.
struct Scale {
    step: f64,
    steps: u32,
}

impl Scale {
    /// Four to nine steps of 1, 2 or 5 times a power of ten.
    fn for_values(greatest: f64) -> Scale {
        let greatest = if greatest > 0.0 && greatest.is_finite() { greatest } else { 1.0 };
        let rough = greatest / 8.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        Scale { step, steps: (greatest / step).ceil().max(1.0) as u32 }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let step = self.step;
        (0..=self.steps).map(move |tick| f64::from(tick) * step)
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + value / (self.step * f64::from(self.steps)) * (WIDTH - LEFT - RIGHT)
    }

    fn label(&self, tick: f64) -> String {
        let digits = (-self.step.log10().floor()).max(0.0) as usize;
        format!("{tick:.digits$}")
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Chart {
        let bar =
            |kind, parts: &[f64], spread| Bar { kind, parts: parts.to_vec(), spread, text: "1 < 2".into() };
        Chart {
            title: "Time & \"room\"".into(),
            note: "shorter is better".into(),
            axis: "seconds".into(),
            mark: Some(1.0),
            legend: vec!["godwit".into(), "criu".into()],
            groups: vec![Group {
                label: "random".into(),
                bars: vec![bar(0, &[0.5, 0.25], (0.6, 0.9)), bar(1, &[2.0], (2.0, 2.0))],
            }],
        }
    }

    /// Every tag is closed in order, and every attribute quoted: as far as XML goes here.
    fn assert_well_formed(svg: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = svg;
        while let Some(begin) = rest.find('<') {
            assert!(!rest[..begin].contains('>'), "a stray > before {}", &rest[begin..]);
            let end = begin + rest[begin..].find('>').expect("a tag without an end");
            let tag = &rest[begin + 1..end];
            assert!(!tag.contains('<') && tag.matches('"').count().is_multiple_of(2), "{tag}");
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
            match (tag.strip_prefix('/'), tag.ends_with('/')) {
                (Some(_), _) => assert_eq!(open.pop(), Some(name)),
                (None, false) => open.push(name),
                (None, true) => {}
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty(), "{open:?}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn a_chart_is_well_formed_and_says_everything() {
        let svg = chart().render();
        assert_well_formed(&svg);
        for part in ["Time &amp; &quot;room&quot;", "seconds", "1 &lt; 2", "random", "criu", "k0 pale"] {
            assert!(svg.contains(part), "{part} is missing");
        }
        assert_eq!(svg.matches("class=\"spread\"").count(), 1, "only what varied has a spread");
    }

    #[test]
    fn an_empty_chart_is_well_formed_too() {
        let empty = Chart { groups: vec![], mark: None, ..chart() };
        assert!(empty.is_empty());
        assert_well_formed(&empty.render());
    }

    #[test]
    fn the_axis_has_round_steps_and_holds_everything() {
        for (greatest, step) in [(1.0, 0.2), (7.9, 1.0), (0.034, 0.005), (1500.0, 200.0), (0.0, 0.2)] {
            let scale = Scale::for_values(greatest);
            assert!((scale.step - step).abs() < step * 1e-9, "{greatest}: {}", scale.step);
            assert!(scale.step * f64::from(scale.steps) >= greatest);
        }
        assert_eq!(Scale::for_values(1.0).label(0.2), "0.2");
        assert_eq!(Scale::for_values(1500.0).label(200.0), "200");
    }

    #[test]
    fn a_bar_is_as_long_as_its_value() {
        let scale = Scale::for_values(2.0);
        let half = (scale.x(1.0) - scale.x(0.0)) / (scale.x(2.0) - scale.x(0.0));
        assert!((half - 0.5).abs() < 1e-9);
    }
}
