//! Path patterns of other programs, and how they are written here.

use super::pattern::PathPattern;

const COLON: &str = "has a parameter after a colon, which would be literal text here";
const ANGLES: &str = "has a parameter in angle brackets, which would be literal text here";
const SQUARES: &str = "has a parameter in square brackets, which would be literal text here";
const BRACES: &str = "has more than a name in the braces of a parameter";
const STAR: &str = "has a single *, which is no wildcard here";
const STARS: &str = "has \"**\" before its end";
const QUERY: &str = "has a query, which no route looks at";
const PART: &str = "has a wildcard that is not a whole segment";
const REGEX: &str = "is a regular expression, which a route cannot have";

/// Why `text` is a pattern of another program, and how to write it here; `None` if it is not one.
pub(super) fn foreign(text: &str) -> Option<(String, String)> {
    let trimmed = text.trim();
    if let Some((method, path)) = trimmed.split_once(' ')
        && path.trim_start().starts_with('/')
        && method.len() > 1
        && method.bytes().all(|b| b.is_ascii_uppercase())
    {
        let path = convert(path.trim_start()).0;
        return Some(("begins with a method".to_owned(), format!("write {path:?} and methods = [{method:?}]")));
    }
    let is_host =
        |text: &str| text.contains('.') && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:".contains(&b));
    let without_scheme = trimmed.split_once("://").map(|(_, rest)| rest);
    let bare = trimmed.split_once('/').filter(|(host, _)| is_host(host)).map(|_| trimmed);
    if let Some(rest) = without_scheme.or(bare) {
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = path.strip_suffix("/*").map_or_else(|| path.to_owned(), |path| format!("{path}/**"));
        let path = convert(if path.is_empty() { "/**" } else { &path }).0;
        let host = host.split(':').next().unwrap_or_default();
        return Some(("has a host".to_owned(), format!("write {path:?} and hosts = [{host:?}]")));
    }
    if matches!(trimmed, "*" | "**" | ".*" | "^.*$" | "^/") {
        let why = if trimmed.starts_with('*') { STAR } else { REGEX };
        return Some((why.to_owned(), "leave `path` out, or write \"/**\": every path".to_owned()));
    }
    if let Some((path, _)) =
        trimmed.split_once('?').filter(|(path, query)| path.starts_with('/') && query.contains('='))
    {
        return Some((QUERY.to_owned(), format!("write {:?}", convert(path).0)));
    }
    let (path, mut why) = without_operator(trimmed);
    let (written, found) = convert(&path);
    let written = if written.starts_with('/') { written } else { format!("/{written}") };
    why = why.or(found);
    if why == Some(REGEX) && trimmed.contains('|') && !trimmed.contains('(') {
        return Some((REGEX.to_owned(), "write a route for each of them: \"/exact\" or \"/files/**\"".to_owned()));
    }
    let examples = "one segment is \"{name}\", everything below is \"/**\" at the end";
    let hint = match PathPattern::parse_plain(&written) {
        Ok(_) if written.ends_with("/{name}") && why == Some(STAR) => {
            let below = written.replace("/{name}", "/**");
            format!("write {below:?} for everything below, or {written:?} for one segment")
        }
        Ok(_) => format!("write {written:?}: {examples}"),
        Err(_) => format!("write \"/exact\", \"/items/{{id}}\" or \"/files/**\": {examples}"),
    };
    Some((why?.to_owned(), hint))
}

/// How to write a path whose literal segments look like the parameters of another program: `$id` and `(id)`.
pub fn unusual(text: &str) -> Option<String> {
    // Of OData, which has no others.
    const ODATA: [&str; 10] =
        ["$all", "$batch", "$count", "$crossjoin", "$entity", "$links", "$metadata", "$ref", "$root", "$value"];
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let name = |segment: &str| {
        let name = segment.strip_prefix('$').filter(|_| !ODATA.contains(&segment));
        let name = name.or_else(|| segment.strip_prefix('(')?.strip_suffix(')'))?;
        is_name(name).then(|| format!("{{{name}}}"))
    };
    let written: Vec<String> =
        text.split('/').map(|segment| name(segment).unwrap_or_else(|| segment.to_owned())).collect();
    let written = written.join("/");
    (written != text).then(|| format!("if it is a parameter, write {written:?}"))
}

/// The path without what NGINX, HAProxy and Traefik write around it.
fn without_operator(text: &str) -> (String, Option<&'static str>) {
    const OPERATOR: &str = "begins with an operator of another proxy";
    let quoted = text.split(['`', '"', '\'']).nth(1).filter(|path| path.starts_with('/'));
    if let Some(path) = quoted.filter(|_| text.contains('(')) {
        let below = text.to_lowercase().starts_with("pathprefix");
        return (if below { format!("{}/**", path.trim_end_matches('/')) } else { path.to_owned() }, Some(OPERATOR));
    }
    for (operator, why) in [
        ("regexp:", REGEX),
        ("regex:", REGEX),
        ("re:", REGEX),
        ("~*", REGEX),
        ("^~", OPERATOR),
        ("~", REGEX),
        ("=", OPERATOR),
    ] {
        let rest = text.strip_prefix(operator).map(str::trim_start);
        if let Some(rest) = rest.filter(|rest| rest.starts_with(['/', '^', '('])) {
            return (
                if operator == "^~" { format!("{}/**", rest.trim_end_matches('/')) } else { rest.to_owned() },
                Some(why),
            );
        }
    }
    if let Some((name, path)) =
        text.split_once(' ').filter(|(name, path)| name.starts_with("path") && path.contains('/'))
    {
        let path = path.trim_start();
        let below = matches!(name, "path_beg" | "path_dir" | "path_prefix");
        return (if below { format!("{}/**", path.trim_end_matches('/')) } else { path.to_owned() }, Some(OPERATOR));
    }
    (text.to_owned(), None)
}

/// The path as it is written here, and what was different.
fn convert(text: &str) -> (String, Option<&'static str>) {
    let mut why = None;
    let mut path = text.to_owned();
    if path.starts_with('^') || path.ends_with('$') && !path.ends_with("/$") || path.contains('\\') {
        why = Some(REGEX);
    }
    path = path.replace("\\/", "/").trim_start_matches('^').trim_end_matches('$').to_owned();
    for end in ["/?", "(/.*)?", "(?:/.*)?", "(/|$)"] {
        if let Some(rest) = path.strip_suffix(end) {
            why = Some(REGEX);
            path = format!("{rest}{}", if end.contains(".*") { "/**" } else { "" });
        }
    }
    for class in ["([^/]+)", "([^/]*)", "[^/]+", "[^/]*"] {
        if path.contains(class) {
            why = Some(REGEX);
            path = path.replace(class, "{name}");
        }
    }
    let segments: Vec<&str> = path.split('/').collect();
    let mut written = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        let is_last = index + 1 == segments.len();
        let (segment, found) = convert_segment(segment, is_last);
        why = why.or(found);
        if let Some(segment) = segment {
            let ends = segment == "**";
            written.push(segment);
            if ends {
                break;
            }
        }
    }
    let path = written.join("/");
    (if path.is_empty() { "/".to_owned() } else { path }, why)
}

/// One segment as it is written here; `None` if it is left out.
fn convert_segment(segment: &str, is_last: bool) -> (Option<String>, Option<&'static str>) {
    let parameter = |name: &str, rest: bool| {
        let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let name = if name.is_empty() { "name".to_owned() } else { name };
        Some(if rest && is_last { "**".to_owned() } else { format!("{{{name}}}") })
    };
    let name_of = |text: &str| {
        let start = text.find(|c: char| c.is_ascii_alphabetic() || c == '_').unwrap_or(text.len());
        let name = &text[start..];
        name[..name.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(name.len())].to_owned()
    };
    let within = |open: char, close: char| segment.strip_prefix(open).and_then(|inner| inner.strip_suffix(close));
    let is_name =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    if let Some(rest) = segment.strip_prefix(':') {
        return (parameter(&name_of(rest), rest.ends_with(['*', '+'])), Some(COLON));
    }
    if let Some(inner) = within('<', '>').filter(|inner| !inner.contains('<')) {
        const KINDS: [&str; 9] = ["int", "str", "string", "uuid", "slug", "float", "path", "any", "regex"];
        let (kind, name) = match inner.split_once(':').unwrap_or(("", inner)) {
            (name, kind) if KINDS.contains(&kind) => (kind, name),
            other => other,
        };
        let kind = if kind.is_empty() && inner.ends_with("..") { "path" } else { kind };
        return (parameter(&name_of(name), kind == "path"), Some(ANGLES));
    }
    // Not `[a-z]`, which is a class of characters.
    let is_class = |inner: &&str| inner.contains('-') && inner.len() <= 6;
    let in_squares = within('[', ']').map(|inner| inner.trim_matches(['[', ']']));
    if let Some(inner) = in_squares.filter(|inner| is_name(inner) && !is_class(inner)) {
        return (parameter(&name_of(inner), inner.starts_with("...")), Some(SQUARES));
    }
    if let Some(inner) = within('{', '}') {
        if inner == "$" {
            return (None, Some(BRACES));
        }
        let is_plain = inner.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if is_plain || name_of(inner).is_empty() && !inner.contains(['*', '.']) {
            return (Some(segment.to_owned()), None);
        }
        let is_rest = inner.contains('*') || inner.ends_with("...") || inner.ends_with(":path");
        return (parameter(&name_of(inner), is_rest), Some(BRACES));
    }
    if let Some(named) = segment.strip_prefix("(?P<").or_else(|| segment.strip_prefix("(?<")) {
        return (parameter(&name_of(named), false), Some(REGEX));
    }
    let is_rest = [".*", ".+", "(.*)", "(.+)", "(.*?)"].contains(&segment);
    let is_regex =
        segment.contains(['\\', '^', '|', '[', ']', '<', '>']) || segment.contains(".*") || segment.contains(".+");
    if is_regex || ["(?", "(:", ")?", ")*", ")+"].iter().any(|part| segment.contains(part)) {
        return (parameter("", is_rest), Some(REGEX));
    }
    match segment {
        "**" if is_last => (Some(segment.to_owned()), None),
        "**" => (Some(segment.to_owned()), Some(STARS)),
        "*" => (parameter("", false), Some(STAR)),
        _ if segment.starts_with('*') && is_last && is_name(&segment[1..]) && !segment.contains('.') => {
            (Some("**".to_owned()), Some(STAR))
        }
        _ if segment.ends_with("**") => (Some(segment.to_owned()), None),
        _ if segment.ends_with('*') && is_last && is_name(&segment[..segment.len() - 1]) => {
            (Some(format!("{}/**", &segment[..segment.len() - 1])), Some(PART))
        }
        _ if segment.contains(['{', '}']) => (parameter(&name_of(segment), false), Some(PART)),
        _ if segment.contains('*') => (parameter("file", false), Some(PART)),
        _ => (Some(segment.to_owned()), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_other_programs_get_the_spelling_of_this_one() {
        for (text, why, here) in [
            ("/users/:id", COLON, "/users/{id}"),
            ("/users/:id/posts/:post_id", COLON, "/users/{id}/posts/{post_id}"),
            ("/users/:id(\\\\d+)", REGEX, "/users/{id}"),
            ("/users/:id?", COLON, "/users/{id}"),
            ("/files/:path*", COLON, "/files/**"),
            ("/users/<id>", ANGLES, "/users/{id}"),
            ("/users/<int:id>", ANGLES, "/users/{id}"),
            ("/files/<path:rest>", ANGLES, "/files/**"),
            ("/users/[id]", SQUARES, "/users/{id}"),
            ("/docs/[...slug]", SQUARES, "/docs/**"),
            ("/docs/[[...slug]]", SQUARES, "/docs/**"),
            ("/users/{id:int}", BRACES, "/users/{id}"),
            ("/users/{id:[0-9]+}", BRACES, "/users/{id}"),
            ("/users/{id?}", BRACES, "/users/{id}"),
            ("/files/{rest:path}", BRACES, "/files/**"),
            ("/files/{*rest}", BRACES, "/files/**"),
            ("/files/{rest...}", BRACES, "/files/**"),
            ("/users/{$}", BRACES, "/users"),
            ("/files/*rest", STAR, "/files/**"),
            ("/a/*/b", STAR, "/a/{name}/b"),
            ("/files/*.js", PART, "/files/{file}"),
            ("/api*", PART, "/api/**"),
            ("users/:id", COLON, "/users/{id}"),
            ("re:/users/.*", REGEX, "/users/**"),
            ("/users/<id:int>", ANGLES, "/users/{id}"),
            ("/search?q=*", QUERY, "/search"),
            ("example.com/api/*", "host", "/api/**"),
            ("*", STAR, "/**"),
            (".*", REGEX, "/**"),
            ("/a/**/b", STARS, "/a/**"),
            ("/items/{id}.json", PART, "/items/{id}"),
            ("/users/(\\d+)$", REGEX, "/users/{name}"),
            ("/users/\\d+", REGEX, "/users/{name}"),
            ("^/users/[0-9]+$", REGEX, "/users/{name}"),
            ("/users/(?P<id>[0-9]+)", REGEX, "/users/{id}"),
            ("/users/([^/]+)/x", REGEX, "/users/{name}/x"),
            ("/api/.*", REGEX, "/api/**"),
            ("/api(/.*)?", REGEX, "/api/**"),
            ("~ ^/api/.*$", REGEX, "/api/**"),
            ("~* /api/(.*)", REGEX, "/api/**"),
            ("= /exact", "operator", "/exact"),
            ("^~ /static/", "operator", "/static/**"),
            ("PathPrefix(`/api`)", "operator", "/api/**"),
            ("Path(`/api`)", "operator", "/api"),
            ("path_beg /api", "operator", "/api/**"),
            ("GET /users/{id}", "method", "/users/{id}"),
            ("https://example.com/x", "host", "/x"),
        ] {
            let (said, hint) = foreign(text).unwrap_or_else(|| panic!("{text} is accepted"));
            assert!(said.contains(why), "{text}: {said}");
            assert!(hint.contains(&format!("{here:?}")), "{text}: {hint}");
        }
        assert!(
            foreign("/files/*")
                .is_some_and(|(_, hint)| hint.contains("\"/files/**\"") && hint.contains("\"/files/{name}\""))
        );
    }

    #[test]
    fn paths_that_only_look_like_patterns_are_literal() {
        for text in [
            "/",
            "/exact",
            "/items/{id}",
            "/files/**",
            "/v1/items:batchGet",
            "/Products(1)",
            "/$metadata",
            "/@scope/pkg",
            "/a+b",
            "/~user",
            "/a.b",
            "/caf\u{e9}",
            "/a;b",
            "/a//b",
            "/x/$count",
            "/{}",
        ] {
            assert_eq!(foreign(text), None, "{text}");
        }
    }
}
