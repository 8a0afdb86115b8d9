mod cost;
mod passwords;
mod peers;
mod sessions;
mod statuses;
