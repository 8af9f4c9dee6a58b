// Package scale measures how many machines a rack's coordinators carry: agents that speak the real RPCs call coordinators that are
// processes of their own. Its test is a small run of the same; "make bench" runs it in full and writes the figures.
package scale
