//! HTML, written in order. Only text of this program's source is written as it is; everything else is escaped.

use std::fmt::{Display, Write};

/// A piece of HTML.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Html(String);

/// Escapes what has a meaning in the text or in a quoted attribute of HTML.
struct Escaping<'s>(&'s mut String);

impl Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // HTML has no notation for control characters, and readers must not see their effect.
                '\0'..='\u{8}'
                | '\u{b}'..='\u{1f}'
                | '\u{7f}'..='\u{9f}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}' => {
                    self.0.push('\u{fffd}');
                }
                other => self.0.push(other),
            }
        }
        Ok(())
    }
}

impl Html {
    /// An empty piece.
    pub fn new() -> Self {
        Self::default()
    }

    /// A piece with this text.
    pub fn of(text: impl Display) -> Self {
        let mut html = Self::new();
        html.text(text);
        html
    }

    /// Writes markup.
    pub fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Writes text, or the value of a quoted attribute.
    pub fn text(&mut self, text: impl Display) -> &mut Self {
        // Writing to a `String` cannot fail.
        let _ = write!(Escaping(&mut self.0), "{text}");
        self
    }

    /// Writes a piece.
    pub fn add(&mut self, piece: &Self) -> &mut Self {
        self.0.push_str(&piece.0);
        self
    }

    /// The markup.
    pub fn finish(self) -> String {
        self.0
    }

    /// The markup so far.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A table. The first cell of each row is its header.
pub fn table(caption: &'static str, heads: &[&'static str], rows: Vec<Vec<Html>>) -> Html {
    let mut html = Html::new();
    html.raw("<table><caption>").raw(caption).raw("</caption><thead><tr>");
    for head in heads {
        html.raw("<th scope=\"col\">").raw(head).raw("</th>");
    }
    html.raw("</tr></thead><tbody>");
    for row in rows {
        html.raw("<tr>");
        for (number, cell) in row.iter().enumerate() {
            if number == 0 {
                html.raw("<th scope=\"row\">").add(cell).raw("</th>");
            } else {
                html.raw("<td>").add(cell).raw("</td>");
            }
        }
        html.raw("</tr>");
    }
    html.raw("</tbody></table>");
    html
}

/// A list of names and values.
pub fn facts(pairs: &[(&'static str, Html)]) -> Html {
    let mut html = Html::new();
    html.raw("<dl>");
    for (name, value) in pairs {
        html.raw("<div><dt>").raw(name).raw("</dt><dd>").add(value).raw("</dd></div>");
    }
    html.raw("</dl>");
    html
}

/// A note.
pub fn note(text: impl Display) -> Html {
    let mut html = Html::new();
    html.raw("<p class=\"note\">").text(text).raw("</p>");
    html
}

/// A hash that tells versions of a text apart (FNV-1a).
pub fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_wherever_it_stands() {
        let mut html = Html::new();
        html.raw("<a title=\"")
            .text("\"><script>alert(1)</script>")
            .raw("\">")
            .text("a & b's\u{0}\u{202e}")
            .raw("</a>");
        assert_eq!(
            html.finish(),
            "<a title=\"&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;\">a &amp; b&#39;s\u{fffd}\u{fffd}</a>"
        );
    }

    #[test]
    fn tables_have_captions_and_scopes() {
        let table = table("Routes", &["route", "p99"], vec![vec![Html::of("a<b"), Html::of(1)]]);
        assert_eq!(
            table.as_str(),
            "<table><caption>Routes</caption><thead><tr><th scope=\"col\">route</th><th scope=\"col\">p99</th></tr></thead>\
             <tbody><tr><th scope=\"row\">a&lt;b</th><td>1</td></tr></tbody></table>"
        );
    }
}
