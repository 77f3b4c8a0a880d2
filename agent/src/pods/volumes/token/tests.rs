use std::cell::Cell;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn token(text: &str) -> Token {
    Token { text: text.into(), refresh_at: at(80), expires_at: at(100) }
}

/// What a volume gets at `now` when the API server would answer with `answer`, and whether it was asked.
async fn ask(kept: &Kept, now: i64, answer: Result<Token, String>) -> (Result<String, String>, bool) {
    let asked = Cell::new(false);
    let request = async {
        asked.set(true);
        answer
    };
    let got = kept.fresh_or(("api".into(), 100), at(now), request).await;
    (got.map(|token| token.text), asked.get())
}

#[tokio::test]
async fn a_token_is_kept_until_its_renewal_and_used_until_it_expires() {
    let kept = Kept::default();
    let gone = || Err::<Token, _>("no server".to_owned());
    assert_eq!(ask(&kept, 0, Ok(token("a"))).await, (Ok("a".into()), true));
    assert_eq!(ask(&kept, 79, Ok(token("b"))).await, (Ok("a".into()), false));
    assert_eq!(ask(&kept, 80, gone()).await, (Ok("a".into()), true));
    assert_eq!(ask(&kept, 100, gone()).await, (Err("no server".into()), true));
    assert_eq!(ask(&kept, 100, Ok(token("c"))).await, (Ok("c".into()), true));
}

#[tokio::test]
async fn each_audience_and_lifetime_has_its_own() {
    let kept = Kept::default();
    kept.put(("api".into(), 100), token("a"));
    for key in [("vault".to_owned(), 100), ("api".to_owned(), 200)] {
        let got = kept.fresh_or(key, at(0), async { Ok(token("b")) }).await;
        assert_eq!(got.unwrap().text, "b");
    }
}
