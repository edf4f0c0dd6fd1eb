//! Patterns of `allowed_routes`: which paths they match, and whether one list allows no more than another. A pattern is
//! a path (including everything below it), a prefix that ends in `*`, or the name of one of LiteLLM's groups of routes.

use crate::route_table;

/// Whether a pattern matches a path.
pub fn matches(path: &str, pattern: &str) -> bool {
    if !is_pattern(pattern) {
        return false;
    }
    if path == pattern || in_group(path, pattern) {
        return true;
    }
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => path.strip_prefix(pattern).is_some_and(|rest| rest.starts_with('/')),
    }
}

/// Whether a route belongs to one of LiteLLM's groups of routes.
fn in_group(path: &str, group: &str) -> bool {
    route_table::find(path).is_some_and(|route| route.groups.contains(&group))
}

fn paths() -> impl Iterator<Item = &'static str> {
    route_table::ROUTES.iter().map(|route| route.path)
}

/// Whether a string can match anything: it is not empty, contains neither spaces nor control characters, and has a `*`
/// only at its end.
pub fn is_pattern(text: &str) -> bool {
    let spaced = text.chars().any(|character| character.is_whitespace() || character.is_control());
    let inner = text.strip_suffix('*').unwrap_or(text);
    !text.is_empty() && !spaced && !inner.contains('*')
}

/// Whether a key that is limited to `list` may call every route that `pattern` matches. An empty list is no limit. If
/// this can't be decided (for a group of routes that the list does not name), the answer is `false`.
pub fn covers(list: &[String], pattern: &str) -> bool {
    list.is_empty() || list.iter().any(|allowed| covers_one(allowed, pattern))
}

fn covers_one(allowed: &str, pattern: &str) -> bool {
    if !is_pattern(allowed) || !is_pattern(pattern) {
        // A string that matches nothing is covered by everything. It covers only other such strings.
        return !is_pattern(pattern);
    }
    if allowed == pattern || matches!(allowed, "*" | "/*") {
        return true;
    }
    let (is_prefix, start) = pattern.strip_suffix('*').map_or((false, pattern), |start| (true, start));
    if !start.starts_with('/') {
        // A group of routes, or a prefix of everything.
        return false;
    }
    if let Some(prefix) = allowed.strip_suffix('*') {
        return start.starts_with(prefix);
    }
    if allowed.starts_with('/') {
        return start.strip_prefix(allowed).is_some_and(|rest| rest.starts_with('/'));
    }
    // A path and a group: every route at and below the path must be in the group.
    let mut below = paths().filter(|path| matches(path, pattern)).peekable();
    !is_prefix && below.peek().is_some() && below.all(|path| in_group(path, allowed))
}

/// A list of patterns that allows only routes that both lists allow. It may allow fewer.
pub fn intersection(one: &[String], other: &[String]) -> Vec<String> {
    if one.is_empty() || one == other {
        return other.to_vec();
    }
    if other.is_empty() {
        return one.to_vec();
    }
    let of_one = one.iter().filter(|pattern| covers(other, pattern));
    let both: Vec<String> = of_one.chain(other.iter().filter(|pattern| covers(one, pattern))).cloned().collect();
    // An empty list would mean no limit.
    if both.is_empty() { vec![String::new()] } else { both }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(patterns: &[&str]) -> Vec<String> {
        patterns.iter().map(|pattern| (*pattern).to_owned()).collect()
    }

    #[test]
    fn what_is_no_pattern_matches_nothing() {
        for pattern in
            ["", " ", "\t", "\n", " /spend/logs", "/spend/logs ", " *", "* ", "**", "/*/", "\u{a0}", "\u{3000}*", "/"]
        {
            for path in paths().filter(|path| *path != "/") {
                assert!(!matches(path, pattern), "{pattern:?} {path}");
            }
        }
        assert!(matches("/spend/logs", "*") && matches("/spend/logs", "/*"));
    }

    #[test]
    fn a_covered_pattern_opens_no_more() {
        for (of, pattern, expected) in [
            (&[][..], "*", true),
            (&["/spend/logs"][..], "/spend/logs", true),
            (&["/spend/logs"], "/spend/logs/v2", true),
            (&["/spend/logs"], "/spend/logs/*", true),
            (&["/spend/logs"], "/spend/logs*", false),
            (&["/spend/logs"], "/spend/logsx", false),
            (&["/spend/*"], "/spend/tags", true),
            (&["/spend/*"], "/spend/*", true),
            (&["/spend/*"], "/spend*", false),
            (&["/spend/*"], "*", false),
            (&["/spend/*"], "spend_tracking_routes", false),
            (&["spend_tracking_routes"], "spend_tracking_routes", true),
            (&["spend_tracking_routes"], "/spend/tags", true),
            (&["spend_tracking_routes"], "/spend/*", false),
            (&["spend_tracking_routes"], "/key/generate", false),
            // There are more routes below this path than the group contains.
            (&["key_management_routes"], "/spend/logs", false),
            (&["/", "x"], "/spend/logs", false),
            (&[""], "/spend/logs", false),
            (&["/*"], "management_routes", true),
            (&["/spend/logs"], "", true),
        ] {
            assert_eq!(covers(&list(of), pattern), expected, "{of:?} {pattern}");
        }
    }

    /// Checks every pair from a list of odd patterns: a pattern that is reported as covered must be covered on every
    /// path.
    #[test]
    fn cover_and_intersection_hold_on_every_path() {
        let patterns = [
            "",
            " ",
            "*",
            "/*",
            "/",
            "/spend",
            "/spend/",
            "/spend/*",
            "/spend*",
            "/spend/logs",
            "/spend/logs/",
            "/spend/logs*",
            "/spend/logs/ui",
            "/key/generate",
            "/key/*",
            "spend_tracking_routes",
            "key_management_routes",
            "management_routes",
            "info_routes",
            "internal_user_view_only_routes",
            "nonsense",
            "/global/spend/report",
        ];
        for one in patterns {
            for other in patterns {
                let both = intersection(&list(&[one]), &list(&[other]));
                assert!(!both.is_empty(), "{one:?} {other:?}");
                for path in paths() {
                    if covers(&list(&[one]), other) {
                        assert!(
                            !matches(path, other) || matches(path, one),
                            "{one:?} does not cover {other:?}: {path}"
                        );
                    }
                    if both.iter().any(|pattern| matches(path, pattern)) {
                        assert!(matches(path, one) && matches(path, other), "{one:?} {other:?}: {path} {both:?}");
                    }
                }
            }
        }
    }
}
