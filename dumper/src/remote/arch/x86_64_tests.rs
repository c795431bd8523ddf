use super::*;

fn regs() -> Regs {
    Regs {
        r15: 15,
        r14: 14,
        r13: 13,
        r12: 12,
        rbp: 5,
        rbx: 3,
        r11: 11,
        r10: 10,
        r9: 9,
        r8: 8,
        rcx: 1,
        rdx: 2,
        rsi: 6,
        rdi: 7,
        orig_rax: u64::MAX,
        rip: 0x1000,
        cs: 0x33,
        eflags: 0x246,
        rsp: 0x7000,
        ss: 0x2b,
        fs_base: 0x70,
        ..Regs::default()
    }
}

fn stopped_in(nr: u64, result: i64) -> Regs {
    Regs { orig_rax: nr, rax: result as u64, ..regs() }
}

#[test]
fn registers_outside_a_call_stay_as_they_are() {
    // -512 in rax is a value like any other in user code.
    let seen = Regs { rax: -512i64 as u64, ..regs() };
    assert_eq!(resumed(&seen, None), seen);
    assert_eq!(settled(&seen, None), seen);
}

#[test]
fn restartable_calls_are_wound_back_to_their_instruction() {
    for code in [ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK] {
        let seen = stopped_in(202, code);
        assert_eq!(resumed(&seen, None), seen, "the kernel restarts it by itself");
        assert_eq!(settled(&seen, None), Regs { rax: 202, rip: 0x1000 - 2, ..seen });
    }
    let done = stopped_in(0, 17);
    assert_eq!(settled(&done, None), done);
}

#[test]
fn a_handler_ends_the_calls_that_it_ends() {
    let ended = |code| Some(Regs { rax: EINTR as u64, ..stopped_in(34, code) });
    for (code, with_restart, without) in [
        (ERESTARTSYS, None, ended(ERESTARTSYS)),
        (ERESTARTNOINTR, None, None),
        (ERESTARTNOHAND, ended(ERESTARTNOHAND), ended(ERESTARTNOHAND)),
        (ERESTART_RESTARTBLOCK, ended(ERESTART_RESTARTBLOCK), ended(ERESTART_RESTARTBLOCK)),
        (17, None, None),
    ] {
        assert_eq!(interrupted(&stopped_in(34, code), true), with_restart, "{code} with SA_RESTART");
        assert_eq!(interrupted(&stopped_in(34, code), false), without, "{code} without");
    }
    let outside = Regs { rax: ERESTARTSYS as u64, ..regs() };
    assert_eq!(interrupted(&outside, false), None);
}

#[test]
fn a_call_continued_before_is_named_by_its_code_or_ends_with_eintr() {
    let seen = stopped_in(219, ERESTART_RESTARTBLOCK);
    assert!(needs_restarted_call(&seen));
    assert_eq!(settled(&seen, Some(230)), Regs { rax: 230, rip: 0x1000 - 2, ..seen });
    assert_eq!(settled(&seen, None), Regs { rax: EINTR as u64, ..seen });
    assert_eq!(restarted_call(&[0xb8, 230, 0, 0, 0, 0x0f, 0x05]), Some(230));
    assert_eq!(restarted_call(&[0xb8, 1, 0, 0, 0, 0x0f, 0x05]), None, "write has no restart block");
    assert_eq!(restarted_call(&[0x90, 230, 0, 0, 0, 0x0f, 0x05]), None);
}

#[test]
fn endless_waits_cut_short_by_the_stop_are_left_to_the_kernel() {
    let endless = Regs { r10: -1i32 as u32 as u64, ..stopped_in(232, EINTR) };
    assert_eq!(resumed(&endless, None).rax as i64, ERESTARTNOHAND);
    assert_eq!(settled(&resumed(&endless, None), None), Regs { rax: 232, rip: 0x1000 - 2, ..endless });
    let limited = Regs { r10: 1000, ..endless };
    assert_eq!(resumed(&limited, None), limited);
    let sigwait = Regs { rdx: 0, ..stopped_in(128, EINTR) };
    assert_eq!(resumed(&sigwait, None).rax as i64, ERESTARTNOHAND);
    let read = stopped_in(0, EINTR);
    assert_eq!(resumed(&read, None), read, "a read that really got EINTR keeps it");
}

#[test]
fn a_restartable_sequence_goes_to_its_abort_handler() {
    assert_eq!(resumed(&regs(), Some(0x2000)).rip, 0x2000);
}

#[test]
fn plain_returns_are_told_from_other_code() {
    assert!(is_plain_return(&[0xc3]));
    assert!(is_plain_return(&[0x31, 0xd2, 0x31, 0xc9, 0x45, 0x31, 0xc0, 0xc3]));
    assert!(!is_plain_return(&[0x31, 0xe4, 0xc3]), "clears the stack pointer");
    assert!(!is_plain_return(&[0x31, 0xd1, 0xc3]), "mixes two registers");
    assert!(!is_plain_return(&[0x48, 0x98, 0xc3]));
    assert!(!is_plain_return(&[0x31]) && !is_plain_return(&[]));
}

#[test]
fn a_frame_has_every_register_at_its_place() {
    let xstate = vec![0u8; 2688];
    let frame = Frame::new(&regs(), 0xdead, &xstate);
    let at = 0x7ff0_0000_1008;
    let bytes = frame.bytes(at, 0x4242);
    assert!(bytes.len() <= frame.len_max());
    let word = |offset: usize| u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap());
    assert_eq!(word(0), 0x4242);
    assert_eq!(word(8), 7, "uc_flags");
    assert_eq!(word(32), 0x7f, "ss_flags");
    // struct sigcontext begins 48 bytes into the frame.
    let context: Vec<u64> = (0..24).map(|index| word(48 + 8 * index)).collect();
    assert_eq!(context[..8], [8, 9, 10, 11, 12, 13, 14, 15]);
    assert_eq!(context[8..18], [7, 6, 5, 3, 2, 0, 1, 0x7000, 0x1000, 0x246]);
    assert_eq!(context[18], 0x33 | 0x2b << 48);
    assert_eq!(word(48 + 256), 0xdead, "uc_sigmask");
    let fpstate = context[23];
    assert_eq!(fpstate % 64, 0);
    let area = &bytes[(fpstate - at) as usize..];
    assert_eq!(area.len(), 576 + 4, "no component beyond SSE is in use");
    assert_eq!(area[464..468], FP_XSTATE_MAGIC1.to_le_bytes());
    assert_eq!(area[576..], FP_XSTATE_MAGIC2.to_le_bytes());
}

#[test]
fn the_floating_point_area_is_cut_behind_the_last_component_in_use() {
    let components =
        [Component { bit: 2, offset: 576, size: 256 }, Component { bit: 18, offset: 2816, size: 8192 }];
    let mut xstate = vec![0u8; 11008];
    xstate[XSTATE_BV] = 0b111;
    let area = fpstate(&xstate, &components);
    assert_eq!(area.len(), 832 + 4);
    assert_eq!(area[472..480], 7u64.to_le_bytes());
    assert_eq!(area[480..484], 832u32.to_le_bytes());
    xstate[XSTATE_BV + 2] = 4;
    assert_eq!(fpstate(&xstate, &components).len(), 11008 + 4);
    assert_eq!(fpstate(&[1; 512], &components).len(), 512);
}

#[test]
fn the_kernel_stack_names_a_continued_call() {
    let in_call = "[<0>] do_syscall_64+0x71/0x280\n";
    let by_clock = [1, 0, 0x7ffe_0000_0000, 0, 0, 0];
    let by_address = [0x7ffe_0000_0000, 0, 0, 0, 0, 0];
    let clock_of_a_thread = [-2i32 as u64, 0, 0, 0, 0, 0];
    assert_eq!(restarted_call_by_stack(in_call, &by_clock), Some(230));
    assert_eq!(restarted_call_by_stack(in_call, &clock_of_a_thread), Some(230));
    assert_eq!(restarted_call_by_stack(in_call, &by_address), Some(35));
    assert_eq!(restarted_call_by_stack("[<0>] futex_wait_restart+0x47/0x80\n", &by_address), Some(202));
    assert_eq!(restarted_call_by_stack("[<0>] do_restart_poll+0x43/0x90\n", &by_address), Some(7));
    let stopped = "[<0>] do_signal_stop+0x1/0x2\n[<0>] get_signal+0x3/0x4\n[<0>] do_syscall_64+0x71/0x280\n";
    assert_eq!(restarted_call_by_stack(stopped, &by_clock), None);
    assert_eq!(restarted_call_by_stack("", &by_clock), None, "a kernel that hides its stacks");
}

#[test]
fn a_thread_at_a_frame_of_ours_is_healing() {
    let bytes = Frame::new(&regs(), 0, &[0; 576]).bytes(0x1000, 0x4242);
    // In a call the stack pointer is at the frame, parked it is a word above.
    let parked: [u8; HEALING_BYTES] = bytes[..HEALING_BYTES].try_into().unwrap();
    let mut in_call = [0u8; HEALING_BYTES];
    in_call[8..].copy_from_slice(&bytes[..HEALING_BYTES - 8]);
    assert!(is_healing(&parked) && is_healing(&in_call));
    let mut other = parked;
    other[32] = 0;
    assert!(!is_healing(&other) && !is_healing(&[0; HEALING_BYTES]));
}
