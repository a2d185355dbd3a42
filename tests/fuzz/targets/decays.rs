//! Decayed sums. Bytes are refused, or are the only encoding of a sum. Sums, and their bytes, sort
//! as plain integers do where those have room, and keep their order if all their parts are moved in
//! time. Epochs, weights and half-lives are arbitrary.
#![no_main]
#![allow(clippy::unwrap_used)]

use arbitrary::Arbitrary;
use keepcount::{Decayed, HalfLife};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    near: [Vec<(u8, i64)>; 2],
    any: [Vec<(i64, i64)>; 2],
    moved: i64,
    half_life: u64,
    at: i64,
    scale: u32,
    raw: [&'a [u8]; 2],
}

/// Eight totals of 64 bits, each shifted by up to 60 bits, fit in 128 bits.
const NEAR: u8 = 61;
const MAX_NEAR: usize = 8;
const MAX_ANY: usize = 32;

fuzz_target!(|input: Input<'_>| {
    let half_life = HalfLife::seconds(i64::try_from(input.half_life >> 1).unwrap().max(1));
    check_time(half_life, input.at);
    let near = input.near.map(|totals| {
        totals
            .into_iter()
            .take(MAX_NEAR)
            .map(|(epoch, total)| (epoch % NEAR, total))
            .collect::<Vec<_>>()
    });
    let [plain, other_plain] = near.each_ref().map(|totals| {
        totals.iter().map(|(epoch, total)| i128::from(*total) << epoch).sum::<i128>()
    });
    let [one, two] = near
        .map(|totals| Decayed::sum(totals.into_iter().map(|(epoch, total)| (epoch.into(), total))));
    assert_eq!(one.cmp(&two), plain.cmp(&other_plain));
    assert_eq!(one.is_zero(), plain == 0);
    check_pair(&one, &two);

    let any = input.any.map(|totals| totals.into_iter().take(MAX_ANY).collect::<Vec<(i64, i64)>>());
    let [one, two] = any.each_ref().map(|totals| Decayed::sum(totals.iter().copied()));
    check_pair(&one, &two);
    let moved = |(epoch, total): &(i64, i64)| Some((epoch.checked_add(input.moved)?, *total));
    let then = any
        .each_ref()
        .map(|totals| totals.iter().map(moved).collect::<Option<Vec<_>>>().map(Decayed::sum));
    if let [Some(one_then), Some(two_then)] = then {
        assert_eq!(
            one_then.cmp(&two_then),
            one.cmp(&two),
            "the order is the same after both are moved in time"
        );
    }
    for sum in [&one, &two] {
        let value = sum.at(half_life, input.at, input.scale);
        assert!(!sum.is_zero() || value == Some(0));
        assert!(*sum >= Decayed::sum([]) || value.is_none_or(|value| value <= 0));
        assert!(*sum <= Decayed::sum([]) || value.is_none_or(|value| value >= 0));
    }

    let [one, two] = input
        .raw
        .map(|bytes| Decayed::from_bytes(bytes).inspect(|sum| assert_eq!(sum.to_bytes(), bytes)));
    if let (Some(one), Some(two)) = (one, two) {
        check_pair(&one, &two);
        let _ = one.at(half_life, input.at, input.scale);
    }
});

fn check_pair(one: &Decayed, two: &Decayed) {
    let bytes = [one, two].map(Decayed::to_bytes);
    assert_eq!(bytes[0].cmp(&bytes[1]), one.cmp(two), "{one:?}, {two:?}");
    assert_eq!(one == two, one.cmp(two).is_eq());
    assert_eq!(Decayed::from_bytes(&bytes[0]).as_ref(), Some(one));
    assert_eq!(Decayed::from_bytes(&bytes[1]).as_ref(), Some(two));
}

/// A time is in one epoch. Within an epoch, a later time weighs no less.
fn check_time(half_life: HalfLife, at: i64) {
    let (seconds, epoch) = (i128::from(half_life.as_seconds()), half_life.epoch(at));
    let into = i128::from(at) - i128::from(epoch) * seconds;
    assert!((0..seconds).contains(&into), "{half_life}, {at}");
    let weight = half_life.weight(at);
    assert!(
        (1 << HalfLife::SCALE_BITS..=2 << HalfLife::SCALE_BITS).contains(&weight),
        "{half_life}, {at}: {weight}"
    );
    assert!(into > 0 || weight == 1 << HalfLife::SCALE_BITS);
    if let Some(later) = at.checked_add(1).filter(|later| half_life.epoch(*later) == epoch) {
        assert!(half_life.weight(later) >= weight, "{half_life}, {at}");
    }
}
