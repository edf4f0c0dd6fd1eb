//! Property tests: whatever a query string or a body contains, the readers accept it or report an error.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::randomness::check;

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        select(vec![
            "",
            "0",
            "-1",
            " 7 ",
            "+7",
            "9223372036854775808",
            "1e3",
            "NaN",
            "inf",
            "TRUE",
            "off",
            "one",
            "\0",
            "a\0b"
        ])
        .prop_map(str::to_owned),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| number.to_string()),
        "\\PC{0,12}",
        any::<String>(),
    ]
}

fn name() -> impl Strategy<Value = &'static str> {
    select(vec!["a", "b", "c", ""])
}

#[test]
fn of_repeated_parameters_the_last_counts_and_one_with_a_nul_is_refused() {
    check(1_000, vec((name(), value()), 0..8), |pairs| {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(&pairs).finish();
        for name in ["a", "b", "c", "", "d"] {
            let mut reader = QueryReader::new(&query);
            let last = pairs.iter().rev().find(|(given, _)| *given == name).map(|(_, value)| value.clone());
            let read = reader.text(name);
            match last {
                Some(value) if value.contains('\0') => prop_assert_eq!((read, reader.errors.len()), (None, 1)),
                last => prop_assert_eq!((read, reader.errors.len()), (last, 0)),
            }
        }
        Ok(())
    });
}

#[test]
fn a_number_is_within_its_bounds_or_an_error() {
    let bounds = (any::<i64>(), any::<i64>()).prop_map(|(one, other)| (one.min(other), one.max(other)));
    check(2_000, (value(), bounds), |(value, (least, most))| {
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("n", &value).finish();
        let mut reader = QueryReader::new(&query);
        let read = reader.optional_integer("n", least, most);
        prop_assert_eq!(read.is_none(), reader.errors.len() == 1);
        if let Some(read) = read {
            prop_assert!(least <= read && read <= most);
            prop_assert_eq!(Ok(read), value.trim().parse());
        }
        let mut reader = QueryReader::new(&query);
        let number = reader.optional_number("n");
        prop_assert_eq!(number.is_none(), reader.errors.len() == 1);
        let mut reader = QueryReader::new(&query);
        let truth = reader.optional_boolean("n");
        prop_assert_eq!(truth.is_none(), reader.errors.len() == 1);
        let mut reader = QueryReader::new(&query);
        let choice = reader.choice("n", &[("one", 1), ("off", 2)], "one or off");
        prop_assert_eq!(choice.is_none(), reader.errors.len() == 1);
        Ok(())
    });
}

#[test]
fn any_query_string_is_read() {
    let text = prop_oneof![any::<String>(), "[a-c=&%+0-9A-F;]{0,40}"];
    check(1_000, text, |query| {
        let mut reader = QueryReader::new(&query);
        for name in ["a", "b", "c", ""] {
            let _ = (reader.text(name), reader.integer(name, 1, 0, 9), reader.boolean(name, true));
            let _ = (reader.optional_number(name), reader.required_text(name));
        }
        prop_assert!(reader.errors.iter().all(|error| !error.msg.is_empty() && error.loc.len() == 2));
        Ok(())
    });
}

#[test]
fn any_body_is_an_object_or_a_refusal() {
    let body = prop_oneof![
        vec(any::<u8>(), 0..60),
        "[\\[\\]{}\":,0-9a-f\\\\ \n\u{fc}-]{0,40}".prop_map(String::into_bytes),
        (1_usize..3_000, select(vec!["[", "{\"a\":", "{\"a\":["]))
            .prop_map(|(depth, text)| text.repeat(depth).into_bytes()),
    ];
    let media_type =
        select(vec!["", "application/json", "application/x+json", "text/plain", "application/json; charset=latin1"]);
    check(1_000, (body, media_type), |(body, media_type)| {
        let mut headers = HeaderMap::new();
        if !media_type.is_empty() {
            headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media_type));
        }
        match parse_object(&headers, &body) {
            Ok(object) => {
                prop_assert_eq!(Value::Object(object), serde_json::from_slice::<Value>(&body).unwrap());
                prop_assert!(media_type != "text/plain");
            }
            Err(ApiError::Validation(errors)) => {
                prop_assert_eq!(errors.len(), 1);
                // An offset in the text points at one of its characters or at its end.
                if let Some(offset) = errors[0].loc.get(1).and_then(Value::as_u64) {
                    prop_assert!(offset <= body.len() as u64 + 1);
                }
            }
            Err(error) => prop_assert_eq!(error.status(), StatusCode::BAD_REQUEST),
        }
        Ok(())
    });
}
