//! The XML that Grid Engine's commands print, as a row of events. Pure; any text is taken, and what is no XML, or cut off, is an error.

use std::borrow::Cow;

/// What comes next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// `<name attributes>`
    Open(&'a str, &'a str),
    /// `</name>`
    Close(&'a str),
    /// Between two tags, with what was escaped put back; never only spaces.
    Text(Cow<'a, str>),
}

/// All of a document, to the end of its only root.
pub fn events(text: &str) -> Result<Vec<Event<'_>>, String> {
    let (mut events, mut open, mut rest) = (Vec::new(), Vec::new(), text.trim());
    let bad = |what: &str, rest: &str| Err(format!("{what} at {:?}", rest.chars().take(60).collect::<String>()));
    while !rest.is_empty() {
        let Some(tag) = rest.strip_prefix('<') else {
            let (between, next) = rest.split_at(rest.find('<').unwrap_or(rest.len()));
            if open.is_empty() && !between.trim().is_empty() {
                return bad("text outside of the XML", rest);
            }
            if !between.trim().is_empty() {
                events.push(Event::Text(unescape(between)));
            }
            rest = next;
            continue;
        };
        let Some((tag, next)) = tag.split_once('>') else { return bad("XML that is cut off", rest) };
        if !tag.starts_with('?') && !tag.starts_with('!') {
            if open.is_empty() && !events.is_empty() {
                return bad("XML after its end", rest);
            }
            if let Some(name) = tag.strip_prefix('/') {
                if open.pop() != Some(name.trim()) {
                    return bad("XML that closes what is not open", rest);
                }
                events.push(Event::Close(name.trim()));
            } else {
                let (inside, is_empty) = tag.strip_suffix('/').map_or((tag, false), |inside| (inside, true));
                let (name, attributes) = inside.split_once(char::is_whitespace).unwrap_or((inside, ""));
                events.push(Event::Open(name, attributes.trim()));
                match is_empty {
                    true => events.push(Event::Close(name)),
                    false => open.push(name),
                }
            }
        }
        rest = next;
    }
    match (open.is_empty(), events.is_empty()) {
        (true, false) => Ok(events),
        (_, true) => Err("no XML".to_string()),
        (false, _) => Err("XML that is cut off".to_string()),
    }
}

/// The value of an attribute, in either kind of quotes.
pub fn attribute<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = attributes.trim_start();
    while let Some((key, value)) = rest.split_once('=') {
        let quote = value.chars().next().filter(|q| matches!(q, '\'' | '"'))?;
        let (value, next) = value[1..].split_once(quote)?;
        if key.trim() == name {
            return Some(value);
        }
        rest = next.trim_start();
    }
    None
}

fn unescape(text: &str) -> Cow<'_, str> {
    const ESCAPES: [(&str, &str); 5] = [("lt;", "<"), ("gt;", ">"), ("quot;", "\""), ("apos;", "'"), ("amp;", "&")];
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut parts = text.split('&');
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        match ESCAPES.iter().find_map(|(escape, plain)| Some((plain, part.strip_prefix(escape)?))) {
            Some((plain, rest)) => out.extend([plain, rest]),
            None => out.extend(["&", part]),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_document_is_read_and_one_that_is_cut_off_is_none() {
        let text = "<?xml version='1.0'?>\n<a x=\"1\">\n <b y='2' z='3 4'>c &lt;&amp;lt; &x</b>\n <d/>\n</a>\n";
        let read = events(text).unwrap();
        assert_eq!(Event::Open("b", "y='2' z='3 4'"), read[1]);
        assert_eq!(Event::Text("c <&lt; &x".into()), read[2]);
        assert_eq!([Event::Open("d", ""), Event::Close("d"), Event::Close("a")], read[4..]);
        assert_eq!((Some("3 4"), None), (attribute("y='2' z='3 4'", "z"), attribute("y='2' z='3 4'", "4")));
        for end in 0..text.trim_end().len() {
            assert!(events(&text[..end]).is_err(), "{end}");
        }
        for bad in ["", "error: no", "<a></b>", "<a></a><b></b>", "<a></a> x", "x <a></a>"] {
            assert!(events(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "(?s).{0,100}", more in "[<>/a&'\"=! \n;-]{0,100}") {
            for text in [&text, &more] {
                let _ = (events(text), attribute(text, "a"), unescape(text));
            }
        }
    }
}
