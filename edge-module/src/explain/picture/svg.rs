//! As much of SVG 1.1 as the picture needs. Numbers have one decimal; each text is escaped.

/// Which end of a text its place is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }
}

/// A picture being written.
pub(super) struct Svg(String);

impl Svg {
    /// An empty white picture.
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self(format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" \
             font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
        ))
    }

    /// The whole picture.
    pub(super) fn end(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        self.stroke(from, to, &format!("stroke=\"{colour}\" stroke-width=\"{width:.1}\""));
    }

    pub(super) fn dashed(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, opacity: f64) {
        self.stroke(
            from,
            to,
            &format!(
                "stroke=\"{colour}\" stroke-width=\"1.0\" \
                 stroke-dasharray=\"5 3\" stroke-opacity=\"{opacity:.2}\""
            ),
        );
    }

    fn stroke(&mut self, from: (f64, f64), to: (f64, f64), style: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.push(&format!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {style}/>"
        ));
    }

    pub(super) fn rectangle(
        &mut self,
        corner: (f64, f64),
        size: (f64, f64),
        colour: &str,
        opacity: f64,
    ) {
        let ((x, y), (width, height)) = (corner, size);
        self.push(&format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
             height=\"{height:.1}\" fill=\"{colour}\" fill-opacity=\"{opacity:.2}\"/>"
        ));
    }

    pub(super) fn circle(&mut self, centre: (f64, f64), radius: f64, colour: &str) {
        let (x, y) = centre;
        self.push(&format!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\" fill=\"#ffffff\" \
             stroke=\"{colour}\" stroke-width=\"1.5\"/>"
        ));
    }

    pub(super) fn polyline(
        &mut self,
        points: impl Iterator<Item = (f64, f64)>,
        colour: &str,
        width: f64,
    ) {
        let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.push(&format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" \
             stroke-width=\"{width:.1}\" stroke-linejoin=\"round\"/>",
            points.join(" ")
        ));
    }

    pub(super) fn text(
        &mut self,
        x: f64,
        y: f64,
        size: f64,
        colour: &str,
        anchor: Anchor,
        text: &str,
    ) {
        let anchor = anchor.as_str();
        self.words(x, y, size, colour, &format!("text-anchor=\"{anchor}\""), text);
    }

    pub(super) fn bold(&mut self, x: f64, y: f64, size: f64, colour: &str, text: &str) {
        self.words(x, y, size, colour, "font-weight=\"bold\"", text);
    }

    /// Around its middle, over what is drawn there, readable still.
    pub(super) fn haloed(&mut self, x: f64, y: f64, size: f64, colour: &str, text: &str) {
        let halo = "text-anchor=\"middle\" stroke=\"#ffffff\" stroke-width=\"3\" \
                    stroke-linejoin=\"round\" paint-order=\"stroke\"";
        self.words(x, y, size, colour, halo, text);
    }

    /// Around its middle, from the bottom up.
    pub(super) fn upright(&mut self, x: f64, y: f64, size: f64, colour: &str, text: &str) {
        let turn = format!("text-anchor=\"middle\" transform=\"rotate(-90 {x:.1} {y:.1})\"");
        self.words(x, y, size, colour, &turn, text);
    }

    fn words(&mut self, x: f64, y: f64, size: f64, colour: &str, style: &str, text: &str) {
        let text = escaped(text);
        self.push(&format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size:.0}\" \
             fill=\"{colour}\" {style}>{text}</text>"
        ));
    }

    fn push(&mut self, element: &str) {
        self.0.push_str(element);
        self.0.push('\n');
    }
}

/// A text's width in most fonts, at most.
pub(super) fn width_of(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * 0.6
}

/// Nothing of a text is taken for markup, and nothing is in it that XML 1.0 (section 2.2) does not allow.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push('?'),
            control if control.is_control() => escaped.push('?'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_cannot_become_markup() {
        let text = "<b a=\"1\" c='2'> & \u{1}\u{fffe}\n ü";
        let expected = "&lt;b a=&quot;1&quot; c=&apos;2&apos;&gt; &amp; ??? ü";
        assert_eq!(escaped(text), expected);
    }
}
