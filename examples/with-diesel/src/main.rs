//! Does some of the application's writes on the empty database that DATABASE_URL names.

use keepcount::Date;
use keepcount_with_diesel::counters::{Setlist, Vote};
use keepcount_with_diesel::{App, Result};
use uuid::Uuid;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut app = App::connect(&std::env::var("DATABASE_URL")?).await?;
    app.migrate().await?;
    app.add_show("winterland").await?;
    app.add_setlist(&Setlist { id: 1, show: "winterland".into() }).await?;
    let vote = Vote { setlist: 1, user: Uuid::from_u128(7), day: "2026-06-01".parse::<Date>()? };
    let id = app.vote(&vote).await?;
    println!("winterland: {} votes", app.show_votes("winterland").await?);
    app.delete_vote(id).await?;
    println!("winterland: {} votes", app.show_votes("winterland").await?);
    Ok(())
}
