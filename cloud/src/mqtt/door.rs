//! Topics that clients cannot publish to: what arrives there must come from where it says.

/// `tributary/+/up/#` (edges' batches), `tributary/+/gap/#` (what the bridge says of an edge) and `$SYS/#` (what a server
/// says of itself).
pub(super) fn is_closed(topic: &str) -> bool {
    let mut levels = topic.split('/');
    match (levels.next(), levels.next(), levels.next()) {
        (Some("$SYS"), _, _) => true,
        (Some("tributary"), Some(_), Some(kind)) => kind == "up" || kind == "gap",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_door_and_sys_are_closed_and_nothing_else() {
        for (topic, closed) in [
            ("tributary/gw1/up/normal", true),
            ("tributary/gw1/up", true),
            ("tributary//up/", true),
            ("tributary/gw1/gap/normal", true),
            ("$SYS/broker", true),
            ("$SYS", true),
            ("tributary/gw1/down/x", false),
            ("tributary/up", false),
            ("x/tributary/gw1/up", false),
            ("$other", false),
        ] {
            assert_eq!(is_closed(topic), closed, "{topic}");
        }
    }
}
