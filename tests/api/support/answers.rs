//! Compares answers with the recorded ones, by the rules of the recordings: numbers are equal within 1e-9, and some
//! lists are compared as sets.

use serde_json::Value;

/// Whether lists are compared in order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lists {
    InOrder,
    AsSets,
}

/// Where and how two values differ, if they do.
pub(crate) fn difference(ours: &Value, recorded: &Value, lists: Lists) -> Option<String> {
    compare(ours, recorded, lists, "$")
}

fn compare(ours: &Value, recorded: &Value, lists: Lists, path: &str) -> Option<String> {
    match (ours, recorded) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64()?, b.as_f64()?);
            let close = (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0);
            (!close).then(|| format!("{path}: {a} instead of {b}"))
        }
        (Value::Array(a), Value::Array(b)) => {
            if a.len() != b.len() {
                return Some(format!("{path}: {} items instead of {}", a.len(), b.len()));
            }
            let (mut a, mut b): (Vec<&Value>, Vec<&Value>) = (a.iter().collect(), b.iter().collect());
            if lists == Lists::AsSets {
                a.sort_by_cached_key(|value| sort_key(value));
                b.sort_by_cached_key(|value| sort_key(value));
            }
            a.iter().zip(&b).enumerate().find_map(|(i, (x, y))| compare(x, y, lists, &format!("{path}[{i}]")))
        }
        (Value::Object(a), Value::Object(b)) => {
            let missing = b.keys().find(|key| !a.contains_key(*key)).map(|key| format!("{path}.{key}: missing"));
            let extra = || a.keys().find(|key| !b.contains_key(*key)).map(|key| format!("{path}.{key}: too much"));
            missing
                .or_else(extra)
                .or_else(|| b.iter().find_map(|(key, y)| compare(&a[key], y, lists, &format!("{path}.{key}"))))
        }
        (a, b) => (a != b).then(|| format!("{path}: {a} instead of {b}")),
    }
}

/// A sort key that is equal for values that compare equal: strings as they are, numbers by value.
fn sort_key(value: &Value) -> Vec<String> {
    fn strings(value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                let mut names: Vec<_> = fields.keys().collect();
                names.sort();
                for name in names {
                    out.push(name.clone());
                    strings(&fields[name], out);
                }
            }
            Value::Array(items) => {
                let mut parts: Vec<Vec<String>> = items
                    .iter()
                    .map(|item| {
                        let mut part = Vec::new();
                        strings(item, &mut part);
                        part
                    })
                    .collect();
                parts.sort();
                out.extend(parts.into_iter().flatten());
            }
            Value::Number(number) => {
                // Six digits distinguish different rows and hide the last bits of a sum.
                out.push(format!("{:.6e}", number.as_f64().unwrap_or_default()));
            }
            other => out.push(other.to_string()),
        }
    }
    let mut out = Vec::new();
    strings(value, &mut out);
    out
}
