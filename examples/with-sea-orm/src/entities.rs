//! The application's tables as SeaORM entities, and their rows as keepcount records.

use keepcount::Date;

use crate::Result;
use crate::counters::{Setlist, Vote};

pub mod shows {
    use sea_orm::entity::prelude::*;

    #[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "shows")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub slug: String,
    }

    #[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub mod setlists {
    use sea_orm::entity::prelude::*;

    #[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "setlists")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i64,
        pub show_slug: String,
    }

    #[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

pub mod votes {
    use sea_orm::entity::prelude::*;

    #[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "votes")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub setlist_id: i64,
        pub user_id: Uuid,
        pub day: TimeDate,
    }

    #[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// You can read a counter's table like any other.
pub mod show_votes {
    use sea_orm::entity::prelude::*;

    #[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "show_votes")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub key: String,
        pub total: i64,
    }

    #[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

impl From<setlists::Model> for Setlist {
    fn from(row: setlists::Model) -> Self {
        Self { id: row.id, show: row.show_slug }
    }
}

impl TryFrom<votes::Model> for Vote {
    type Error = crate::Error;

    fn try_from(row: votes::Model) -> Result<Self> {
        let day =
            Date::from_days(row.day.to_julian_day() - EPOCH).ok_or("a day outside the calendar")?;
        Ok(Self { setlist: row.setlist_id, user: row.user_id, day })
    }
}

pub fn date_of(vote: &Vote) -> Result<sea_orm::prelude::TimeDate> {
    Ok(sea_orm::prelude::TimeDate::from_julian_day(vote.day.days() + EPOCH)?)
}

/// The Julian day of 1970-01-01.
const EPOCH: i32 = 2_440_588;
