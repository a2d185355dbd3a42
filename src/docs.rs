//! The long pages of the project, from its folder `docs`. They exist in the documentation only.
//!
//! | page | what it answers |
//! | --- | --- |
//! | [`guide`] | How do you declare, hook, read, repair and monitor counters? |
//! | [`vocabulary`] | What does a word mean? |
//! | [`guarantees`] | What is promised, on which conditions, and what do you do after a failure? |
//! | [`deploy`] | How do new and changed counters come to live data? |
//! | [`libraries`] | How do sqlx, diesel or SeaORM keep counters, and which rusqlite fits them? |
//! | [`performance`] | What does it cost, and what falls short? |
//! | [`testing`] | What is tested where? |
//! | [`design`] | What is built, and why? |

// In the repository a page links to a file, in the documentation to a module. Of two definitions of
// one link Markdown takes the first: those below come before the page, so they win over its own.
macro_rules! pages {
    ($($name:ident)*) => {
        $(
            #[doc = "[guide]: crate::docs::guide"]
            #[doc = "[vocabulary]: crate::docs::vocabulary"]
            #[doc = "[guarantees]: crate::docs::guarantees"]
            #[doc = "[deploy]: crate::docs::deploy"]
            #[doc = "[libraries]: crate::docs::libraries"]
            #[doc = "[performance]: crate::docs::performance"]
            #[doc = "[testing]: crate::docs::testing"]
            #[doc = "[design]: crate::docs::design"]
            #[doc = ""]
            #[doc = include_str!(concat!("../docs/", stringify!($name), ".md"))]
            pub mod $name {}
        )*
    };
}

pages!(guide vocabulary guarantees deploy libraries performance testing design);
