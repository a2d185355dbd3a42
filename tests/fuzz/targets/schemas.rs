//! Schemas of every kind: empty, plain, and one with rollups over three levels, whose counters the
//! naive model of batches has too.
#![allow(dead_code)] // each target uses a part

use keepcount::{Counter, Schema};
use uuid::Uuid;

/// Driven by rows, and summed by no rollup.
pub const ALL: Counter<()> = Counter::new("all");
pub const WORDS: Counter<String> = Counter::new("words");
/// Driven by rows, and summed by rollups.
pub const SET_VOTES: Counter<u8> = Counter::new("set.votes");
pub const SET_DAYS: Counter<(u8, i8)> = Counter::new("set.days");
/// Memberships: of a set in shows, and in the one site; of a show with artists.
pub const SET_SHOW: Counter<(u8, String)> = Counter::new("set.show");
pub const SET_SITE: Counter<(u8, ())> = Counter::new("set.site");
pub const SHOW_ARTIST: Counter<(String, u16)> = Counter::new("show.artist");
/// Rollups.
pub const SITE_VOTES: Counter<()> = Counter::new("site.votes").sum_of(SET_VOTES, SET_SITE);
pub const SHOW_VOTES: Counter<String> = Counter::new("show.votes").sum_of(SET_VOTES, SET_SHOW);
pub const SHOW_DAYS: Counter<(String, i8)> =
    Counter::new("show.days").sum_of_suffix(SET_DAYS, SET_SHOW);
pub const ARTIST_VOTES: Counter<u16> = Counter::new("artist.votes").sum_of(SHOW_VOTES, SHOW_ARTIST);
pub const ARTIST_DAYS: Counter<(u16, i8)> =
    Counter::new("artist.days").sum_of_suffix(SHOW_DAYS, SHOW_ARTIST);

pub const ROLLED: Schema = Schema::new(&[
    SET_SHOW.table(),
    ALL.table(),
    SET_VOTES.table(),
    SET_SITE.table(),
    SHOW_VOTES.table(),
    SITE_VOTES.table(),
    SET_DAYS.table().prunable(),
    SHOW_DAYS.table().prunable(),
    SHOW_ARTIST.table(),
    ARTIST_DAYS.table().prunable(),
    ARTIST_VOTES.table(),
    WORDS.table(),
]);

const DEVICES: Counter<(i64, Uuid, u128)> = Counter::new("device.votes");

pub const NONE: Schema = Schema::new(&[]);
pub const ONE: Schema = Schema::new(&[WORDS.table()]);
pub const PLAIN: Schema =
    Schema::new(&[DEVICES.table().prunable(), ALL.table(), WORDS.table(), SET_VOTES.table()]);

pub const SCHEMAS: [Schema; 4] = [NONE, ONE, PLAIN, ROLLED];
