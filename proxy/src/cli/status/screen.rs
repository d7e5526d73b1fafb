//! `outrigger top` in a terminal: the summary twice a second.

use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table as Widget};
use ratatui::{DefaultTerminal, Frame};

use super::tables::{self, Table};
use super::{Machine, NoStatus, machines};
use crate::cli::audit::text::safe;
use crate::control::status::{Level, Status};

/// The summary is made at most this often.
const EVERY: Duration = Duration::from_millis(500);
/// How long a key may wait.
const KEYS_EVERY: Duration = Duration::from_millis(100);

/// The content of the screen.
struct Screen {
    machines: Vec<Machine>,
    /// The Machine that is shown.
    shown: usize,
    /// The first route that is shown.
    scroll: usize,
    /// Why there is no newer summary.
    trouble: Option<String>,
    is_paused: bool,
}

/// Shows the summary until `q`, Esc or Ctrl-C.
pub fn run(first: Vec<Machine>, address: SocketAddr, all: bool) -> std::io::Result<()> {
    let (send, found) = mpsc::sync_channel(1);
    // It ends with the process, or when the receiver is gone.
    thread::Builder::new().name("status".into()).spawn(move || {
        while send.send(machines(address, all)).is_ok() {
            thread::sleep(EVERY);
        }
    })?;
    let mut terminal = ratatui::try_init()?;
    let screen = Screen { machines: first, shown: 0, scroll: 0, trouble: None, is_paused: false };
    let result = screen.show(&mut terminal, &found);
    ratatui::try_restore()?;
    result
}

impl Screen {
    fn show(
        mut self,
        terminal: &mut DefaultTerminal,
        found: &Receiver<Result<Vec<Machine>, NoStatus>>,
    ) -> std::io::Result<()> {
        loop {
            terminal.draw(|frame| self.draw(frame))?;
            if event::poll(KEYS_EVERY)? && !self.takes(&event::read()?) {
                return Ok(());
            }
            match found.try_recv() {
                Ok(Ok(machines)) if !self.is_paused => {
                    self.trouble = None;
                    self.shown = self.shown.min(machines.len().saturating_sub(1));
                    self.machines = machines;
                }
                Ok(Err(e)) => self.trouble = Some(e.to_string()),
                Ok(Ok(_)) | Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Returns false if the key ends the program.
    fn takes(&mut self, event: &Event) -> bool {
        let Event::Key(key) = event else { return true };
        if key.kind == KeyEventKind::Release {
            return true;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Tab | KeyCode::Right => self.shown = (self.shown + 1) % self.machines.len().max(1),
            KeyCode::BackTab | KeyCode::Left => {
                self.shown = self.shown.checked_sub(1).unwrap_or(self.machines.len().saturating_sub(1));
            }
            KeyCode::Down | KeyCode::Char('j') => self.scroll = self.scroll.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::Home => self.scroll = 0,
            _ => {}
        }
        true
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let Some(machine) = self.machines.get(self.shown).cloned() else { return };
        let [top, body, keys] =
            Layout::vertical([Constraint::Length(3), Constraint::Min(0), Constraint::Length(1)]).areas(frame.area());
        let Some(status) = &machine.status else {
            let why = format!("{}: no answer: {}", machine.name(), machine.error.as_deref().unwrap_or("unknown"));
            frame.render_widget(Paragraph::new(safe(&why)).style(style(Level::Bad)), top);
            frame.render_widget(self.keys(), keys);
            return;
        };
        frame.render_widget(self.headline(&machine, status), top);
        frame.render_widget(self.keys(), keys);
        self.draw_body(frame, body, status);
    }

    fn headline(&self, machine: &Machine, status: &Status) -> Paragraph<'static> {
        let Headlines { level, text, others } = Headlines::of(status, self.trouble.as_deref());
        let place = if self.machines.len() > 1 {
            format!("{} ({} of {}) ", machine.name(), self.shown + 1, self.machines.len())
        } else {
            String::new()
        };
        let first = Line::from(vec![
            Span::styled(format!(" {} ", tables::word(level)), style(level).add_modifier(Modifier::REVERSED)),
            Span::raw(format!(" {place}")),
            Span::styled(text, Style::new().add_modifier(Modifier::BOLD)),
        ]);
        Paragraph::new(vec![first, Line::from(others)])
    }

    fn keys(&self) -> Paragraph<'static> {
        let paused = if self.is_paused { "paused · " } else { "" };
        let machines = if self.machines.len() > 1 { " · Tab next Machine" } else { "" };
        let text = format!("{paused}q quit · p pause · ↑↓ routes{machines}");
        Paragraph::new(text).style(Style::new().add_modifier(Modifier::DIM))
    }

    fn draw_body(&mut self, frame: &mut Frame<'_>, body: Rect, status: &Status) {
        let facts: Vec<Line<'_>> = tables::facts(status).iter().map(|fact| Line::from(safe(fact))).collect();
        let others = [
            tables::priorities(status),
            tables::breakers(status),
            tables::refusals(status),
            tables::peers(status),
            tables::events(status, 8),
        ];
        let others: Vec<Table> = others.into_iter().filter(|table| !table.rows.is_empty()).collect();
        let [lines, spark, rest] = Layout::vertical([
            Constraint::Length(u16::try_from(facts.len()).unwrap_or(u16::MAX)),
            Constraint::Length(if body.height > 24 { 4 } else { 0 }),
            Constraint::Min(0),
        ])
        .areas(body);
        frame.render_widget(Paragraph::new(facts), lines);
        let points: Vec<u64> = status.traffic.history.iter().map(|point| point.requests_per_s.round() as u64).collect();
        let title = Block::new().title("requests/s, last 5 minutes");
        frame.render_widget(Sparkline::default().block(title).data(&points), spark);
        // Beside each other where there is room.
        let is_wide = rest.width >= 120;
        let [left, right] = if is_wide {
            Layout::horizontal([Constraint::Percentage(55), Constraint::Percentage(45)]).areas(rest)
        } else {
            let needed: usize = others.iter().map(|table| table.rows.len() + 2).sum();
            let lower = u16::try_from(needed).unwrap_or(u16::MAX).min(rest.height / 2);
            Layout::vertical([Constraint::Min(0), Constraint::Length(lower)]).areas(rest)
        };
        let mut routes = tables::routes(status);
        self.scroll = self.scroll.min(routes.rows.len().saturating_sub(1));
        routes.rows.drain(..self.scroll);
        frame.render_widget(widget(&routes), left);
        let heights =
            others.iter().map(|table| Constraint::Length(u16::try_from(table.rows.len() + 2).unwrap_or(u16::MAX)));
        for (table, area) in others.iter().zip(Layout::vertical(heights).split(right).iter()) {
            frame.render_widget(widget(table), *area);
        }
    }
}

struct Headlines {
    level: Level,
    text: String,
    others: String,
}

impl Headlines {
    fn of(status: &Status, trouble: Option<&str>) -> Self {
        let headline = &status.headline;
        match trouble {
            Some(trouble) => Self {
                level: Level::Bad,
                text: format!("no newer summary: {}", safe(trouble)),
                others: format!("before: {}", safe(&headline.text)),
            },
            None => {
                Self { level: headline.level, text: safe(&headline.text), others: safe(&headline.others.join(" · ")) }
            }
        }
    }
}

fn style(level: Level) -> Style {
    Style::new().fg(match level {
        Level::Ok => Color::Green,
        Level::Warn => Color::Yellow,
        Level::Bad => Color::Red,
    })
}

fn widget(table: &Table) -> Widget<'static> {
    let head = Row::new(table.head.iter().copied()).style(Style::new().add_modifier(Modifier::DIM));
    let rows = table.rows.iter().map(|row| Row::new(row.iter().map(|cell| Cell::from(safe(cell)))));
    let columns = table.head.len();
    // As wide as its longest cell, the last one the rest.
    let widths = (0..columns).map(|column| {
        let cells = table.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        let longest = cells.chain([table.head[column].len()]).max().unwrap_or(0).min(60);
        if column + 1 == columns {
            Constraint::Min(8)
        } else {
            Constraint::Length(u16::try_from(longest).unwrap_or(60))
        }
    });
    Widget::new(rows, widths)
        .header(head)
        .column_spacing(2)
        .block(Block::new().title(table.title).title_style(Style::new().add_modifier(Modifier::BOLD)))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn drawn(width: u16, height: u16) -> String {
        let mut status = Status::default();
        status.headline.text = "All is well: 312 requests/s".into();
        status.app.address = "127.0.0.1:8081".into();
        let machine = Machine { name: None, status: Some(Box::new(status)), error: None };
        let mut screen = Screen { machines: vec![machine], shown: 0, scroll: 99, trouble: None, is_paused: false };
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn it_fits_any_terminal() {
        for (width, height) in [(200, 60), (80, 24), (40, 10), (10, 3), (1, 1)] {
            let screen = drawn(width, height);
            assert!(width < 40 || screen.contains("All is well"), "{screen}");
        }
        assert!(drawn(80, 24).contains("q quit"));
    }
}
