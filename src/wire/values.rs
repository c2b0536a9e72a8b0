//! What a script gives back: `Progress`, `Remark`, `OutputLevel` and their nouns.

use super::{WireError, v1};
use crate::values::message::Level;
use crate::values::{Place, Problem, Progress, Remark};

impl From<Progress> for v1::Progress {
    fn from(Progress { percent, message }: Progress) -> Self {
        Self { percent: percent.into(), message }
    }
}

impl TryFrom<v1::Progress> for Progress {
    type Error = WireError;

    fn try_from(v1::Progress { percent, message }: v1::Progress) -> Result<Self, WireError> {
        let percent = u8::try_from(percent).ok();
        let progress = percent.and_then(|percent| Self::new(percent, &message));
        progress.ok_or(WireError::Field("progress.percent"))
    }
}

impl From<Remark> for v1::Remark {
    fn from(remark: Remark) -> Self {
        let text = remark.to_string();
        let Remark { place, problem, name } = remark;
        let (place, line, output_offset) = match place {
            Place::File(line) => (v1::RemarkPlace::File, line, 0),
            Place::Message(offset) => (v1::RemarkPlace::Message, 0, offset),
            Place::Progress => (v1::RemarkPlace::Progress, 0, 0),
        };
        let problem = v1::RemarkProblem::from(problem).into();
        Self { place: place.into(), line, output_offset, problem, name, text }
    }
}

impl From<v1::Remark> for Remark {
    fn from(message: v1::Remark) -> Self {
        let place = match message.place() {
            v1::RemarkPlace::Message => Place::Message(message.output_offset),
            v1::RemarkPlace::Progress => Place::Progress,
            v1::RemarkPlace::File | v1::RemarkPlace::Unspecified => Place::File(message.line),
        };
        Self { place, problem: message.problem().into(), name: message.name }
    }
}

impl From<Problem> for v1::RemarkProblem {
    fn from(problem: Problem) -> Self {
        match problem {
            Problem::NotUnderstood => Self::NotUnderstood,
            Problem::UnknownMessage => Self::UnknownMessage,
            Problem::BadName => Self::BadName,
            Problem::NoEnd => Self::NoEnd,
            Problem::NotText => Self::NotText,
            Problem::TooLong => Self::TooLong,
            Problem::TooMany => Self::TooMany,
            Problem::Sensitive => Self::Sensitive,
            Problem::Unreadable => Self::Unreadable,
            Problem::NoRoom => Self::NoRoom,
        }
    }
}

impl From<v1::RemarkProblem> for Problem {
    fn from(problem: v1::RemarkProblem) -> Self {
        match problem {
            // One that a later version knows is still a remark.
            v1::RemarkProblem::Unspecified | v1::RemarkProblem::NotUnderstood => {
                Self::NotUnderstood
            }
            v1::RemarkProblem::UnknownMessage => Self::UnknownMessage,
            v1::RemarkProblem::BadName => Self::BadName,
            v1::RemarkProblem::NoEnd => Self::NoEnd,
            v1::RemarkProblem::NotText => Self::NotText,
            v1::RemarkProblem::TooLong => Self::TooLong,
            v1::RemarkProblem::TooMany => Self::TooMany,
            v1::RemarkProblem::Sensitive => Self::Sensitive,
            v1::RemarkProblem::Unreadable => Self::Unreadable,
            v1::RemarkProblem::NoRoom => Self::NoRoom,
        }
    }
}

impl From<Level> for v1::OutputLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Default => Self::Unspecified,
            Level::Verbose => Self::Verbose,
            Level::Highlight => Self::Highlight,
            Level::Wait => Self::Wait,
            Level::Warning => Self::Warning,
            Level::Error => Self::Error,
            Level::Ignored => Self::Ignored,
            Level::Message => Self::Message,
        }
    }
}

impl From<v1::OutputLevel> for Level {
    fn from(level: v1::OutputLevel) -> Self {
        match level {
            v1::OutputLevel::Unspecified => Self::Default,
            v1::OutputLevel::Verbose => Self::Verbose,
            v1::OutputLevel::Highlight => Self::Highlight,
            v1::OutputLevel::Wait => Self::Wait,
            v1::OutputLevel::Warning => Self::Warning,
            v1::OutputLevel::Error => Self::Error,
            v1::OutputLevel::Ignored => Self::Ignored,
            v1::OutputLevel::Message => Self::Message,
        }
    }
}
