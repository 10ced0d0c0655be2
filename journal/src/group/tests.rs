mod bugs;
mod rules;
mod simulation;
