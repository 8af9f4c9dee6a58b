// Package agent is the program that runs in the memory of a netbooted machine: it boots itself up, enrols with the rack's coordinator, runs the
// steps that it is given, one at a time, and reports what it sees and does.
package agent
