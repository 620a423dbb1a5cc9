//! Date and time of day for templates, from a number the caller gives.

use std::fmt::Write as _;

/// A date and time of day without a time zone.
///
/// ```
/// use kiln_models::chat::CivilTime;
///
/// let time = CivilTime::from_unix_seconds(1_700_000_000);
/// assert_eq!(time.format("%d %b %Y %H:%M:%S"), Ok("14 Nov 2023 22:13:20".to_owned()));
/// assert_eq!(CivilTime::from_date(2024, 2, 30), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CivilTime {
    /// Days since 1970-01-01.
    days: i64,
    /// Of the day.
    seconds: i64,
}

const DAY: i64 = 86_400;
const WEEKDAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl CivilTime {
    /// The time in UTC, `seconds` after the start of 1970, held within the years 1 to 9999. Add the
    /// offset of a time zone to get its local time.
    pub fn from_unix_seconds(seconds: i64) -> Self {
        let first = days_before_year(1) * DAY;
        let last = days_before_year(10_000) * DAY - 1;
        let seconds = seconds.clamp(first, last);
        Self { days: seconds.div_euclid(DAY), seconds: seconds.rem_euclid(DAY) }
    }

    /// Midnight of a date in the Gregorian calendar, or `None` for a date that does not exist. The
    /// year is 1 to 9999.
    pub fn from_date(year: i32, month: u32, day: u32) -> Option<Self> {
        if !(1..=9999).contains(&year) || !(1..=12).contains(&month) || day == 0 {
            return None;
        }
        let time = Self { days: days_before_year(year.into()), seconds: 0 };
        let days = (1..month).map(|month| days_in_month(year.into(), month)).sum::<i64>();
        let valid = i64::from(day) <= days_in_month(year.into(), month);
        valid.then_some(Self { days: time.days + days + i64::from(day) - 1, ..time })
    }

    /// Year, month (1 to 12) and day of month (1 to 31).
    fn date(&self) -> (i64, u32, i64) {
        // Too early by a few years at most, never too late.
        let mut year = 1970 + self.days.div_euclid(if self.days < 0 { 365 } else { 366 });
        while days_before_year(year + 1) <= self.days {
            year += 1;
        }
        let mut day = self.days - days_before_year(year);
        let mut month = 1;
        while day >= days_in_month(year, month) {
            day -= days_in_month(year, month);
            month += 1;
        }
        (year, month, day + 1)
    }

    /// Formats as C's `strftime` in the C locale. A `-` after `%` drops leading zeros.
    ///
    /// # Errors
    /// The directive that is not known, such as `%Q`.
    pub fn format(&self, format: &str) -> Result<String, String> {
        let (year, month, day) = self.date();
        let weekday = WEEKDAYS[self.days.rem_euclid(7) as usize];
        let month_name = MONTHS[month as usize - 1];
        let (hour, minute, second) =
            (self.seconds / 3600, self.seconds / 60 % 60, self.seconds % 60);
        let half_day_hour = (hour + 11) % 12 + 1;
        let mut out = String::new();
        let mut rest = format.chars();
        while let Some(character) = rest.next() {
            if character != '%' {
                out.push(character);
                continue;
            }
            let mut directive = rest.next();
            let bare = directive == Some('-');
            if bare {
                directive = rest.next();
            }
            let mut number = |value: i64, width: usize| {
                let width = if bare { 1 } else { width };
                // Writing to a string never fails.
                let _ = write!(out, "{value:0width$}");
            };
            match directive {
                Some('Y') => number(year, 4),
                Some('y') => number(year.rem_euclid(100), 2),
                Some('m') => number(month.into(), 2),
                Some('d') => number(day, 2),
                Some('H') => number(hour, 2),
                Some('I') => number(half_day_hour, 2),
                Some('M') => number(minute, 2),
                Some('S') => number(second, 2),
                Some('j') => number(self.days - days_before_year(year) + 1, 3),
                Some('e') => out.push_str(&format!("{day:2}")),
                Some('B') => out.push_str(month_name),
                Some('b' | 'h') => out.push_str(&month_name[..3]),
                Some('A') => out.push_str(weekday),
                Some('a') => out.push_str(&weekday[..3]),
                Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
                Some('F') => out.push_str(&self.format("%Y-%m-%d")?),
                Some('D') => out.push_str(&self.format("%m/%d/%y")?),
                Some('T') => out.push_str(&self.format("%H:%M:%S")?),
                Some('R') => out.push_str(&self.format("%H:%M")?),
                Some('%') => out.push('%'),
                Some(other) => return Err(format!("%{other}")),
                None => return Err("%".to_owned()),
            }
        }
        Ok(out)
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days from 1970-01-01 to January 1st of `year`.
fn days_before_year(year: i64) -> i64 {
    let before = year - 1;
    let leap_days = before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400);
    before * 365 + leap_days - 719_162
}

fn days_in_month(year: i64, month: u32) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(time: CivilTime, format: &str) -> String {
        time.format(format).unwrap()
    }

    #[test]
    fn known_dates() {
        let epoch = CivilTime::from_unix_seconds(0);
        assert_eq!(format(epoch, "%A %d %B %Y, %j, %I %p"), "Thursday 01 January 1970, 001, 12 AM");
        let leap = CivilTime::from_unix_seconds(951_827_696);
        assert_eq!(format(leap, "%a %F %T %-m %e %y"), "Tue 2000-02-29 12:34:56 2 29 00");
        let before = CivilTime::from_unix_seconds(-1);
        assert_eq!(format(before, "%F %R %D"), "1969-12-31 23:59 12/31/69");
    }

    #[test]
    fn dates_and_seconds_agree() {
        for (days, (year, month, day)) in [
            (0, (1970, 1, 1)),
            (19_782, (2024, 2, 29)),
            (20_088, (2024, 12, 31)),
            (-1, (1969, 12, 31)),
        ] {
            let date = CivilTime::from_date(year, month, day).unwrap();
            assert_eq!(date, CivilTime::from_unix_seconds(days * DAY));
        }
        for (year, month, day) in [(2023, 2, 29), (2024, 13, 1), (2024, 1, 0), (0, 1, 1)] {
            assert_eq!(CivilTime::from_date(year, month, day), None);
        }
    }

    #[test]
    fn extreme_seconds_and_unknown_directives() {
        assert_eq!(format(CivilTime::from_unix_seconds(i64::MIN), "%F %T"), "0001-01-01 00:00:00");
        assert_eq!(format(CivilTime::from_unix_seconds(i64::MAX), "%F %T"), "9999-12-31 23:59:59");
        let time = CivilTime::from_unix_seconds(0);
        assert_eq!(time.format("%Q"), Err("%Q".to_owned()));
        assert_eq!(time.format("100%"), Err("%".to_owned()));
        assert_eq!(format(time, "100%%"), "100%");
    }
}
