//! Names of routes and methods as small numbers, so that a request carries and hashes no string twice.
//!
//! The number of names is limited: what comes after the limit is counted as `(other)`. Critical routes are known from the
//! start and stand outside the limit. Methods that HTTP does not define share one name, because anyone can invent them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::fast::RandomState;
use http::Method;

/// The name of requests that no route matched.
pub(crate) const UNMATCHED: &str = "(unmatched)";
/// The name of routes beyond the limit.
pub(crate) const OTHER: &str = "(other)";
/// The name of templates that the contract refuses: longer than 512 bytes, or with control characters.
pub(crate) const INVALID: &str = "(invalid)";

/// The longest template, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 512;

const METHOD_NAMES: [&str; 10] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "CONNECT", "PATCH", "TRACE", "_OTHER"];

/// A method, as its place among the known ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MethodId(u8);

impl MethodId {
    pub(crate) fn of(method: &Method) -> Self {
        Self(match *method {
            Method::GET => 0,
            Method::POST => 1,
            Method::PUT => 2,
            Method::DELETE => 3,
            Method::HEAD => 4,
            Method::OPTIONS => 5,
            Method::CONNECT => 6,
            Method::PATCH => 7,
            Method::TRACE => 8,
            _ => 9,
        })
    }

    /// The method of that name, in any case; none if HTTP does not define it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let at = METHOD_NAMES[..9].iter().position(|known| known.eq_ignore_ascii_case(name))?;
        u8::try_from(at).ok().map(Self)
    }

    pub(crate) fn name(self) -> &'static str {
        METHOD_NAMES[usize::from(self.0)]
    }

    pub(crate) fn number(self) -> u8 {
        self.0
    }
}

/// A known route: its number, and a bit for each method under which it is critical.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) id: u32,
    critical: u16,
}

impl Route {
    pub(crate) fn is_critical(self, method: MethodId) -> bool {
        self.critical & (1 << method.0) != 0
    }
}

/// A template as it was looked up, and whether the answer may be remembered elsewhere.
#[derive(Debug)]
pub(crate) enum Looked {
    /// Known under its own name.
    Known(Arc<str>, Route),
    /// Counted under a common name; the next look-up must ask again, so that memory stays bounded.
    Lumped(Route),
}

/// All names known to this process.
#[derive(Debug)]
pub(crate) struct Routes {
    known: Mutex<Known>,
    limit: usize,
}

#[derive(Debug)]
struct Known {
    by_name: HashMap<Arc<str>, Route, RandomState>,
    names: Vec<Arc<str>>,
    /// Names that count against the limit.
    ordinary: usize,
}

impl Known {
    fn add(&mut self, name: &str, critical: u16) -> (Arc<str>, Route) {
        let name: Arc<str> = name.into();
        let id = u32::try_from(self.names.len()).expect("the limit of names is far below 2^32");
        let route = Route { id, critical };
        self.names.push(Arc::clone(&name));
        self.by_name.insert(Arc::clone(&name), route);
        (name, route)
    }
}

impl Routes {
    /// `limit` is the number of names beside the critical ones.
    pub(crate) fn new(limit: usize, critical: &[(MethodId, String)]) -> Self {
        let mut known = Known { by_name: HashMap::default(), names: Vec::new(), ordinary: 0 };
        for (method, name) in critical {
            let bit = 1 << method.0;
            if let Some(route) = known.by_name.get_mut(name.as_str()) {
                route.critical |= bit;
            } else {
                known.add(name, bit);
            }
        }
        for name in [UNMATCHED, OTHER, INVALID] {
            if !known.by_name.contains_key(name) {
                known.add(name, 0);
            }
        }
        Self { known: Mutex::new(known), limit }
    }

    pub(crate) fn look_up(&self, template: &str) -> Looked {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let template = if template.is_empty() { UNMATCHED } else { template };
        if let Some((name, route)) = known.by_name.get_key_value(template) {
            return Looked::Known(Arc::clone(name), *route);
        }
        let common = if !is_valid_name(template) {
            INVALID
        } else if known.ordinary >= self.limit {
            OTHER
        } else {
            known.ordinary += 1;
            let (name, route) = known.add(template, 0);
            return Looked::Known(name, route);
        };
        Looked::Lumped(*known.by_name.get(common).expect("the common names are added by new()"))
    }

    /// The names by route number.
    pub(crate) fn names(&self) -> Vec<Arc<str>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).names.clone()
    }
}

/// Whether the contract takes it as a service or a route.
pub(crate) fn is_valid_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(routes: &Routes, template: &str) -> String {
        let (Looked::Known(_, route) | Looked::Lumped(route)) = routes.look_up(template);
        routes.names()[route.id as usize].to_string()
    }

    #[test]
    fn routes_beyond_the_limit_are_other_but_critical_ones_never() {
        let critical = [(MethodId(1), "/orders".to_owned()), (MethodId(0), "/orders".to_owned())];
        let routes = Routes::new(2, &critical);
        let names = ["/a", "/b", "/c", "/a", "/orders", "(unmatched)", "/d"].map(|t| name_of(&routes, t));
        assert_eq!(names, ["/a", "/b", "(other)", "/a", "/orders", "(unmatched)", "(other)"]);
        let Looked::Known(_, orders) = routes.look_up("/orders") else { panic!("known by name") };
        assert!(orders.is_critical(MethodId(0)) && orders.is_critical(MethodId(1)) && !orders.is_critical(MethodId(2)));
        assert!(matches!(routes.look_up("/z"), Looked::Lumped(_)), "not to be remembered");
    }

    #[test]
    fn names_that_the_contract_refuses_are_lumped_and_use_up_no_place() {
        let routes = Routes::new(1, &[]);
        assert_eq!(name_of(&routes, &"x".repeat(513)), INVALID);
        assert_eq!(name_of(&routes, "/a\nb"), INVALID);
        assert_eq!(name_of(&routes, ""), UNMATCHED);
        assert_eq!(name_of(&routes, &"x".repeat(512)), "x".repeat(512));
    }

    #[test]
    fn invented_methods_share_one_name() {
        let invented = Method::from_bytes(b"BREW").unwrap();
        assert_eq!(MethodId::of(&invented).name(), "_OTHER");
        for name in &METHOD_NAMES[..9] {
            let method = Method::from_bytes(name.as_bytes()).unwrap();
            assert_eq!(MethodId::of(&method).name(), *name);
            assert_eq!(MethodId::named(&name.to_lowercase()), Some(MethodId::of(&method)));
        }
        assert_eq!(MethodId::named("_OTHER"), None);
    }
}
