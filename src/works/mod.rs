//! Units of work: what goes in and must come out ([`passage`]), what must be there by a time of day ([`expected`]), what still runs ([`in_flight`]);
//! and whether anyone is there to do them ([`presence`]).
//!
//! Pure: each is fed with counts of 10 s slots and with keys, and judged at the end of a slot ([`promised`] has them all). Time is an argument, everything
//! has a limit, and within what is retained the order of arrival changes nothing. What is normal for a flow without a declared ratio is learnt elsewhere
//! ([`crate::detect::flow`]); here stands what somebody has promised.

pub mod daily;
pub mod expected;
pub mod in_flight;
pub mod keys;
pub mod matching;
pub mod pace;
pub mod passage;
pub mod presence;
pub mod promised;
