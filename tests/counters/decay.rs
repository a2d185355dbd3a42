//! Decayed sums beside exact arithmetic with integers of any size.
#![allow(clippy::cast_precision_loss)]

use keepcount::{Decayed, HalfLife};
use num_bigint::BigInt;
use proptest::collection::vec;
use proptest::prelude::*;

/// The sum itself, times two to the power of `-least`.
fn exact(totals: &[(i64, i64)], least: i64) -> BigInt {
    totals
        .iter()
        .map(|(epoch, total)| BigInt::from(*total) << usize::try_from(epoch - least).unwrap())
        .sum()
}

fn power(base: i64, exponent: u32) -> BigInt {
    BigInt::from(base).pow(exponent)
}

/// 2^30 x 2^(r / H) lies within half a unit of the weight: both sides to the power of H are
/// integers.
#[test]
fn every_weight_of_short_half_lives_is_the_nearest() {
    for seconds in (1..=60).chain([97, 128, 211]) {
        let half_life = HalfLife::seconds(seconds);
        let times = u32::try_from(seconds).unwrap();
        for into in 0..seconds {
            let weight = half_life.weight(into);
            let doubled = BigInt::from(1) << usize::try_from(31 * seconds + into).unwrap(); // (2 x 2^30 x 2^(r/H))^H
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
fn no_time_is_too_early_or_too_late() {
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
    assert!(apart.to_bytes().len() < 120, "far epochs take no row of digits between them");
    assert!(apart > Decayed::sum([(i64::MAX, i64::MAX), (i64::MIN, i64::MIN), (1, -1)]));
    assert!(apart < Decayed::sum([(i64::MAX, i64::MAX), (i64::MIN, i64::MAX), (0, -1)]));
}

#[test]
fn a_half_life_is_above_nothing() {
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
    prop_oneof![4 => -4_i64..=4, 2 => any::<i32>().prop_map(i64::from), 1 => any::<i64>(), 1 => Just(i64::MIN), 1 => Just(i64::MAX)]
}

/// Far below the highest digits, of which values are made, something tips what is half of one.
/// Either result is right: the exact value is nearer to a half than the error that is allowed.
#[test]
fn a_half_that_something_tiny_tips_is_rounded_either_way() {
    let at = |more: i64| {
        let sum = Decayed::sum([(3_058, i64::MIN), (0, more)]);
        sum.at(HalfLife::seconds(1), 3_094, 74_900)
    };
    assert_eq!(at(0), Some(-9_362));
    assert!(matches!(at(-1), Some(-9_363 | -9_362)), "{:?}", at(-1));
}

/// Close together, so that digits carry; and thousands of epochs apart.
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
    fn sums_compare_by_value_and_so_do_their_bytes(one in totals(), two in totals(), common in totals()) {
        let join = |own: &[(i64, i64)]| [own, &common].concat();
        for (one, two) in [(one.clone(), two.clone()), (join(&one), join(&two))] {
            let (first, second) = (Decayed::sum(one.iter().copied()), Decayed::sum(two.iter().rev().copied()));
            let wanted = exact(&one, MIN).cmp(&exact(&two, MIN));
            prop_assert_eq!(first.cmp(&second), wanted);
            prop_assert_eq!(first.to_bytes().cmp(&second.to_bytes()), wanted);
            prop_assert_eq!(first == second, wanted.is_eq());
            prop_assert_eq!(Decayed::from_bytes(&first.to_bytes()), Some(first));
        }
    }

    #[test]
    fn what_is_taken_back_leaves_nothing(given in totals(), order in any::<u64>()) {
        let mut both: Vec<(i64, i64)> = given.iter().flat_map(|(epoch, total)| {
            let total = (*total).max(-i64::MAX);
            [(*epoch, total), (*epoch, -total)]
        }).collect();
        both.sort_by_key(|(epoch, total)| (*epoch ^ total).wrapping_mul(order.cast_signed() | 1));
        prop_assert!(Decayed::sum(both).is_zero());
    }

    /// At the beginning of an epoch the value is a fraction of integers.
    #[test]
    fn values_are_rounded_half_up(given in totals(), epoch in -4_100_i64..4_100, seconds in 1_i64..1_000_000, scale in 1_u32..100_000) {
        let value = Decayed::sum(given.iter().copied()).at(HalfLife::seconds(seconds), epoch * seconds, scale);
        // floor(sum x scale / 2^(epoch + 30) + 1/2), with everything times 2^-LEAST; what is nearer
        // to a half than the error may go either way.
        let sum: BigInt = exact(&given, MIN) * scale;
        let shift = usize::try_from(epoch + 30 - MIN).unwrap();
        let rounded = |sum: BigInt| -> BigInt { (sum + (BigInt::from(1) << (shift - 1))) >> shift };
        let error: BigInt = BigInt::from(sum.magnitude().clone()) >> 50_usize;
        let (least, most) = (rounded(&sum - &error), rounded(&sum + &error));
        match value {
            Some(value) => prop_assert!(least <= value.into() && most >= value.into(), "{value} for {least} to {most}"),
            None => prop_assert!(least.bits() > 120, "{least} to {most}"),
        }
    }

    #[test]
    fn a_vote_decays_by_half_in_a_half_life(created in -10_000_000_000_i64..10_000_000_000, later in 0_i64..5_000_000, hours in 1_i64..400) {
        let half_life = HalfLife::hours(hours);
        let vote = Decayed::sum([(half_life.epoch(created), half_life.weight(created))]);
        let value = vote.at(half_life, created + later, 1_000_000_000).unwrap();
        let wanted = 1e9 * 2_f64.powf(-(later as f64) / half_life.as_seconds() as f64);
        prop_assert!((value as f64 - wanted).abs() <= 0.501 + wanted * 1e-9, "{value} {wanted}");
    }

    #[test]
    fn any_bytes_are_one_number_or_none(bytes in vec(prop_oneof![0_u8..3, any::<u8>()], 0..40)) {
        if let Some(number) = Decayed::from_bytes(&bytes) {
            prop_assert_eq!(number.to_bytes(), bytes);
        }
    }
}
