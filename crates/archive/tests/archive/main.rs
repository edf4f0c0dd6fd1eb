//! Archives in directories and behind HTTP, with everything that can go wrong.

mod damage;
mod days;
mod find;
mod s3;
mod scan;
mod support;
