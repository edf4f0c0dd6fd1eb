//! Limits the length of search texts.

use axum::http::StatusCode;

use crate::http::error::{ApiError, ErrorType};

/// Maximum number of characters of a search text.
const MAX: usize = 1_000;

/// 400 if one of these parameters is longer than that.
pub fn check(params: &[(&str, Option<&str>)]) -> Result<(), ApiError> {
    let too_long = params.iter().find(|(_, text)| text.is_some_and(|text| text.chars().nth(MAX).is_some()));
    let Some((name, _)) = too_long else { return Ok(()) };
    Err(ApiError::Refused {
        status: StatusCode::BAD_REQUEST,
        kind: ErrorType::BadRequest,
        message: format!("{name} must have at most {MAX} characters"),
        param: Some((*name).to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_characters_may_be_searched_for() {
        let most = "ü".repeat(MAX);
        assert!(check(&[("a", None), ("b", Some("")), ("c", Some(&most))]).is_ok());
        let more = format!("{most}x");
        assert!(check(&[("a", Some("x")), ("b", Some(&more))]).is_err_and(|error| error.to_string().starts_with("b ")));
    }
}
