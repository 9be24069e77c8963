//! Where something stands in the text of an expression: the parser's tree does not say. What is not supported is not supported wherever it stands, so its first place is the right one.

/// The words and signs of an expression, each with the byte at which it begins; strings and comments are left out.
fn parts(text: &str) -> Vec<(usize, &str)> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (mut parts, mut chars) = (Vec::new(), text.char_indices().peekable());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' | '\'' | '`' => {
                while let Some((_, inside)) = chars.next() {
                    if inside == '\\' && c != '`' {
                        chars.next();
                    } else if inside == c {
                        break;
                    }
                }
            }
            '#' => while chars.next_if(|(_, c)| *c != '\n').is_some() {},
            c if is_word(c) => {
                let mut end = at + 1;
                while let Some((last, _)) = chars.next_if(|(_, c)| is_word(*c) || *c == ':') {
                    end = last + 1;
                }
                parts.push((at, &text[at..end]));
            }
            c if c.is_whitespace() => {}
            c => parts.push((at, &text[at..at + c.len_utf8()])),
        }
    }
    parts
}

/// Where a word or sign stands first.
pub(super) fn of(text: &str, wanted: &str) -> Option<usize> {
    parts(text).into_iter().find(|(_, part)| part.eq_ignore_ascii_case(wanted)).map(|(at, _)| at)
}

/// Where the first colon within brackets stands: the mark of a subquery.
pub(super) fn of_subquery(text: &str) -> Option<usize> {
    let mut open = None;
    for (at, part) in parts(text) {
        match part {
            "[" => open = Some(at),
            "]" => open = None,
            _ if open.is_some() && part.contains(':') => return open,
            _ => {}
        }
    }
    None
}

/// The first bracket that nothing closes, or that closes nothing.
pub(super) fn of_odd_bracket(text: &str) -> Option<(usize, &str)> {
    let mut open: Vec<(usize, &str)> = Vec::new();
    for (at, part) in parts(text) {
        let pair = match part {
            ")" => "(",
            "]" => "[",
            "}" => "{",
            "(" | "[" | "{" => {
                open.push((at, part));
                continue;
            }
            _ => continue,
        };
        if open.pop().is_none_or(|(_, opened)| opened != pair) {
            return Some((at, part));
        }
    }
    open.pop()
}

/// How deep brackets are nested, and how many words and signs there are.
pub(super) fn depth_and_length(text: &str) -> (usize, usize) {
    let (mut depth, mut deepest) = (0_usize, 0);
    let parts = parts(text);
    for (_, part) in &parts {
        match *part {
            "(" => depth += 1,
            ")" => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    (deepest, parts.len())
}

/// Line and column from 1, as Prometheus says them.
pub(super) fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at.min(text.len())];
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_outside_of_strings_and_comments() {
        let text = "sum(rate(a{b=\"irate(\\\"\"}[5m])) # irate\n + irate(a[5m])";
        assert_eq!(of(text, "irate").map(|at| line_and_column(text, at)), Some((2, 4)));
        assert_eq!(of("'@' + \"@\"", "@"), None);
        assert_eq!(of_subquery("rate(a{b='[:]'}[5m]) + max_over_time(b[1h:5m])"), Some(38));
        assert_eq!(of_subquery("rate(job:a:sum[5m])"), None);
        assert_eq!(of_odd_bracket("sum(a))"), Some((6, ")")));
        assert_eq!(of_odd_bracket("sum((a)"), Some((3, "(")));
        assert_eq!(of_odd_bracket("sum(a[5m)"), Some((8, ")")));
        assert_eq!(of_odd_bracket("sum(a{b=\")\"}[5m])"), None);
        assert_eq!(depth_and_length("((1))+(2)"), (2, 9));
    }
}
