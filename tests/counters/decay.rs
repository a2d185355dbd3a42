//! Decayed sums, checked against exact arithmetic with big integers.
#![allow(clippy::cast_precision_loss)]

use keepcount::{Decayed, HalfLife};
use num_bigint::BigInt;
use proptest::collection::vec;
use proptest::prelude::*;

/// The exact sum, multiplied by two to the power of `-least`.
fn exact(totals: &[(i64, i64)], least: i64) -> BigInt {
    totals
        .iter()
        .map(|(epoch, total)| BigInt::from(*total) << usize::try_from(epoch - least).unwrap())
        .sum()
}

fn power(base: i64, exponent: u32) -> BigInt {
    BigInt::from(base).pow(exponent)
}

/// A weight is within half a unit of 2^30 x 2^(r / H). The comparison raises both sides to the
/// power of H, which makes them integers.
#[test]
fn weights_of_short_half_lives_are_rounded_to_the_nearest_integer() {
    for seconds in (1..=60).chain([97, 128, 211]) {
        let half_life = HalfLife::seconds(seconds);
        let times = u32::try_from(seconds).unwrap();
        for into in 0..seconds {
            let weight = half_life.weight(into);
            // (2 x 2^30 x 2^(r/H))^H
            let doubled = BigInt::from(1) << usize::try_from(31 * seconds + into).unwrap();
            assert!(power(2 * weight - 1, times) <= doubled, "{into} of {seconds}: {weight}");
            assert!(doubled <= power(2 * weight + 1, times), "{into} of {seconds}: {weight}");
            assert_eq!(
                half_life.weight(into - 1_000 * seconds),
                weight,
                "the epoch does not matter"
            );
        }
    }
}

#[test]
fn weights_of_long_half_lives_rise_from_one_to_two() {
    for half_life in
        [HalfLife::hours(6), HalfLife::days(1), HalfLife::days(7), HalfLife::seconds(i64::MAX)]
    {
        let mut before = (1 << 30) - 1;
        for part in 0..=1_000 {
            let at = i64::try_from(i128::from(half_life.as_seconds() - 1) * part / 1_000).unwrap();
            let weight = half_life.weight(at);
            assert!(weight >= before && weight <= 1 << 31, "{half_life} {at}: {weight}");
            let float = 2_f64.powf(at as f64 / half_life.as_seconds() as f64 + 30.0);
            assert!((weight as f64 - float).abs() <= 0.5001, "{half_life} {at}: {weight} {float}");
            before = weight;
        }
    }
}

#[test]
fn times_at_both_ends_of_64_bits_are_valid() {
    for half_life in [HalfLife::seconds(1), HalfLife::days(7), HalfLife::seconds(i64::MAX)] {
        for at in [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX] {
            assert!((1 << 30..=1 << 31).contains(&half_life.weight(at)));
            let vote = Decayed::sum([(half_life.epoch(at), half_life.weight(at))]);
            assert_eq!(vote.at(half_life, at, 1_000), Some(1_000), "{half_life} {at}");
            for then in [i64::MIN, 0, i64::MAX] {
                let _ = vote.at(half_life, then, u32::MAX);
            }
            assert_eq!(Decayed::from_bytes(&vote.to_bytes()), Some(vote));
        }
    }
    let apart = Decayed::sum([(i64::MAX, i64::MAX), (i64::MIN, i64::MIN), (0, -1)]);
    assert!(apart.to_bytes().len() < 120, "no digits are stored between far epochs");
    assert!(apart > Decayed::sum([(i64::MAX, i64::MAX), (i64::MIN, i64::MIN), (1, -1)]));
    assert!(apart < Decayed::sum([(i64::MAX, i64::MAX), (i64::MIN, i64::MAX), (0, -1)]));
}

#[test]
fn half_life_that_is_not_positive_is_refused() {
    for text in [
        "",
        "d",
        "0d",
        "-1d",
        "+1d",
        "1",
        "1w",
        "6H",
        "1.5d",
        " 6h",
        "9223372036854775807d",
        "99999999999999999999s",
        "\u{e4}",
    ] {
        let error = text.parse::<HalfLife>().unwrap_err();
        assert!(error.to_string().starts_with("half-life: "), "{error}");
    }
    for (text, seconds) in [("90s", 90), ("6h", 21_600), ("1d", 86_400), ("7d", 604_800)] {
        let half_life: HalfLife = text.parse().unwrap();
        assert_eq!((half_life.as_seconds(), half_life.to_string().as_str()), (seconds, text));
    }
    for wrong in [
        || HalfLife::seconds(0),
        || HalfLife::seconds(-1),
        || HalfLife::days(0),
        || HalfLife::days(i64::MAX),
    ] {
        assert!(std::panic::catch_unwind(wrong).is_err());
    }
}

fn total() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => -4_i64..=4,
        2 => any::<i32>().prop_map(i64::from),
        1 => any::<i64>(),
        1 => Just(i64::MIN),
        1 => Just(i64::MAX),
    ]
}

/// Values are computed from the highest digits. A digit far below them can decide which way a half
/// is rounded. Either result is right: the exact value is nearer to the half than the allowed
/// error.
#[test]
fn half_decided_by_a_far_lower_digit_is_rounded_either_way() {
    let at = |more: i64| {
        let sum = Decayed::sum([(3_058, i64::MIN), (0, more)]);
        sum.at(HalfLife::seconds(1), 3_094, 74_900)
    };
    assert_eq!(at(0), Some(-9_362));
    assert!(matches!(at(-1), Some(-9_363 | -9_362)), "{:?}", at(-1));
}

/// Totals of epochs that are close together, so that digits carry, and of epochs that are thousands
/// apart.
fn totals() -> impl Strategy<Value = Vec<(i64, i64)>> {
    let near = vec((-40_i64..40, total()), 0..8);
    let split = vec((-4_000_i64..4_000, total()), 0..8);
    (near, split, -3_000_i64..3_000).prop_map(|(near, split, shift)| {
        near.into_iter().map(|(epoch, total)| (epoch + shift, total)).chain(split).collect()
    })
}

const MIN: i64 = -10_000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn sums_and_their_bytes_compare_by_value(
        one in totals(), two in totals(), common in totals()
    ) {
        let join = |own: &[(i64, i64)]| [own, &common].concat();
        for (one, two) in [(one.clone(), two.clone()), (join(&one), join(&two))] {
            let first = Decayed::sum(one.iter().copied());
            let second = Decayed::sum(two.iter().rev().copied());
            let wanted = exact(&one, MIN).cmp(&exact(&two, MIN));
            prop_assert_eq!(first.cmp(&second), wanted);
            prop_assert_eq!(first.to_bytes().cmp(&second.to_bytes()), wanted);
            prop_assert_eq!(first == second, wanted.is_eq());
            prop_assert_eq!(Decayed::from_bytes(&first.to_bytes()), Some(first));
        }
    }

    #[test]
    fn totals_that_cancel_sum_to_zero_in_any_order(given in totals(), order in any::<u64>()) {
        let mut both: Vec<(i64, i64)> = given.iter().flat_map(|(epoch, total)| {
            let total = (*total).max(-i64::MAX);
            [(*epoch, total), (*epoch, -total)]
        }).collect();
        both.sort_by_key(|(epoch, total)| (*epoch ^ total).wrapping_mul(order.cast_signed() | 1));
        prop_assert!(Decayed::sum(both).is_zero());
    }

    /// At the beginning of an epoch the exact value is a fraction of integers.
    #[test]
    fn values_are_rounded_half_up(
        given in totals(), epoch in -4_100_i64..4_100,
        seconds in 1_i64..1_000_000, scale in 1_u32..100_000
    ) {
        let half_life = HalfLife::seconds(seconds);
        let value = Decayed::sum(given.iter().copied()).at(half_life, epoch * seconds, scale);
        // floor(sum x scale / 2^(epoch + 30) + 1/2), with all terms times 2^-MIN. A value nearer to
        // a half than the error may be rounded either way.
        let sum: BigInt = exact(&given, MIN) * scale;
        let shift = usize::try_from(epoch + 30 - MIN).unwrap();
        let rounded = |sum: BigInt| -> BigInt { (sum + (BigInt::from(1) << (shift - 1))) >> shift };
        let error: BigInt = BigInt::from(sum.magnitude().clone()) >> 50_usize;
        let (least, most) = (rounded(&sum - &error), rounded(&sum + &error));
        match value {
            Some(value) => prop_assert!(
                least <= value.into() && most >= value.into(),
                "{value} for {least} to {most}"
            ),
            None => prop_assert!(least.bits() > 120, "{least} to {most}"),
        }
    }

    #[test]
    fn weight_of_a_vote_halves_in_each_half_life(
        created in -10_000_000_000_i64..10_000_000_000,
        later in 0_i64..5_000_000, hours in 1_i64..400
    ) {
        let half_life = HalfLife::hours(hours);
        let vote = Decayed::sum([(half_life.epoch(created), half_life.weight(created))]);
        let value = vote.at(half_life, created + later, 1_000_000_000).unwrap();
        let wanted = 1e9 * 2_f64.powf(-(later as f64) / half_life.as_seconds() as f64);
        prop_assert!((value as f64 - wanted).abs() <= 0.501 + wanted * 1e-9, "{value} {wanted}");
    }

    #[test]
    fn bytes_decode_to_one_number_or_to_none(
        bytes in vec(prop_oneof![0_u8..3, any::<u8>()], 0..40)
    ) {
        if let Some(number) = Decayed::from_bytes(&bytes) {
            prop_assert_eq!(number.to_bytes(), bytes);
        }
    }
}
