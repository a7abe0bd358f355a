//! "Did you mean …?" for every mistyped name.

/// The known names that a mistyped one may have meant, best first, at most three.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut scored: Vec<(f64, &str)> = known
        .into_iter()
        .map(|name| (similarity(&typed.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(score, _)| *score > 0.78)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let best = scored.first().map_or(0.0, |(score, _)| *score);
    scored.into_iter().filter(|(score, _)| *score > best - 0.08).take(3).map(|(_, name)| name).collect()
}

/// Jaro-Winkler knows no neighbours in words of three letters: there one slip of a finger counts instead.
fn similarity(typed: &str, known: &str) -> f64 {
    let one_slip = typed.len() >= 3 && strsim::osa_distance(typed, known) == 1;
    strsim::jaro_winkler(typed, known).max(if one_slip { 0.9 } else { 0.0 })
}

/// `; did you mean north or south?`, or nothing.
pub fn did_you_mean<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(typed, known).as_slice() {
        [] => String::new(),
        names => format!("; did you mean {}?", names.join(" or ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_offered() {
        assert_eq!(nearest("nroth", ["south", "north"]).first(), Some(&"north"));
        assert_eq!(nearest("ulr", ["url", "id"]), ["url"]);
        assert_eq!(did_you_mean("zzz", ["north"]), "");
    }
}
